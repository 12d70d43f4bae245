import Devices
import Foundation
import Testing

@Suite("ACPI tables") struct ACPITablesTests {
    private static let base: UInt64 = 0xEFFF_0000

    /// Reads what a guest would read.
    private struct Memory {
        let base: UInt64
        let bytes: [UInt8]

        func integer(_ address: UInt64, _ count: Int) -> UInt64 {
            let start = Int(address - base)
            return bytes[start..<start + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }

        func text(_ address: UInt64, _ count: Int) -> String {
            String(decoding: bytes[Int(address - base)..<Int(address - base) + count], as: UTF8.self)
        }

        func table(_ address: UInt64) -> [UInt8] {
            let start = Int(address - base)
            return Array(bytes[start..<start + Int(integer(address + 4, 4))])
        }
    }

    private func build(
        _ configuration: ACPITables.Configuration = .init()
    ) -> (memory: Memory, rsdp: Memory, fadt: UInt64) {
        let (tables, pointer) = ACPITables.build(at: Self.base, configuration)
        let memory = Memory(base: Self.base, bytes: tables)
        let rsdp = Memory(base: 0, bytes: pointer)
        return (memory, rsdp, memory.integer(rsdp.integer(24, 8) + 36, 8))
    }

    private func sum(_ bytes: some Sequence<UInt8>) -> UInt8 { bytes.reduce(0, &+) }

    @Test func `root pointer has both checksums`() {
        let rsdp = build().rsdp
        #expect(rsdp.bytes.count == 36)
        #expect(rsdp.text(0, 8) == "RSD PTR ")
        #expect(rsdp.text(9, 6) == "VMD   ")
        #expect(rsdp.bytes[15] == 2)
        #expect(sum(rsdp.bytes.prefix(20)) == 0)
        #expect(sum(rsdp.bytes) == 0)
    }

    @Test func `both root tables point to the same FADT`() {
        let (memory, rsdp, fadt) = build()
        let rsdt = rsdp.integer(16, 4)
        let xsdt = rsdp.integer(24, 8)
        #expect(memory.text(rsdt, 4) == "RSDT")
        #expect(memory.text(xsdt, 4) == "XSDT")
        #expect(memory.integer(rsdt + 36, 4) == fadt)
        #expect(memory.text(fadt, 4) == "FACP")
    }

    @Test func `every table sums to zero`() {
        let (memory, rsdp, fadt) = build()
        for address in [rsdp.integer(16, 4), rsdp.integer(24, 8), fadt, memory.integer(fadt + 140, 8)] {
            #expect(sum(memory.table(address)) == 0)
        }
    }

    @Test func `FADT names the registers of the devices`() {
        let (memory, _, fadt) = build()
        #expect(memory.integer(fadt + 4, 4) == 268)
        #expect(memory.integer(fadt + 8, 1) == 5)
        #expect(memory.integer(fadt + 46, 2) == 9)
        #expect(memory.integer(fadt + 48, 4) == 0)
        #expect(memory.integer(fadt + 56, 4) == 0xB000)
        #expect(memory.integer(fadt + 64, 4) == 0xB008)
        #expect(memory.integer(fadt + 76, 4) == 0xB00C)
        #expect(memory.integer(fadt + 88, 4) == 0x0400_0204)
        #expect(memory.integer(fadt + 108, 1) == 0x32)
        #expect(memory.integer(fadt + 109, 2) & 2 == 0)
        #expect(memory.integer(fadt + 112, 4) == 0x465)
        #expect(memory.integer(fadt + 116, 4) == 0x0100_0801)
        #expect(memory.integer(fadt + 120, 8) == 0xCF9)
        #expect(memory.integer(fadt + 128, 1) == 6)
        #expect(memory.integer(fadt + 152, 8) == 0xB000)
        #expect(memory.integer(fadt + 176, 8) == 0xB008)
        #expect(memory.integer(fadt + 212, 8) == 0xB00C)
    }

    @Test func `32-bit timer is announced`() {
        var configuration = ACPITables.Configuration()
        configuration.timerBits = 32
        let (memory, _, fadt) = build(configuration)
        #expect(memory.integer(fadt + 112, 4) & 0x100 != 0)
    }

    @Test func `FACS lies on a 64-byte boundary`() {
        let (memory, _, fadt) = build()
        let facs = memory.integer(fadt + 36, 4)
        #expect(facs % 64 == 0)
        #expect(memory.text(facs, 4) == "FACS")
        #expect(memory.integer(fadt + 132, 8) == facs)
        #expect(memory.integer(facs + 4, 4) == 64)
    }

    @Test func `DSDT begins with soft off`() {
        let (memory, _, fadt) = build()
        let dsdt = memory.integer(fadt + 140, 8)
        #expect(memory.integer(fadt + 40, 4) == dsdt)
        #expect(memory.text(dsdt, 4) == "DSDT")
        // Name (_S5, Package (4) { 5, 5, 0, 0 })
        let expected: [UInt8] = [0x08, 0x5F, 0x53, 0x35, 0x5F, 0x12, 0x08, 0x04, 0x0A, 5, 0x0A, 5, 0, 0]
        #expect(Array(memory.table(dsdt)[36..<36 + expected.count]) == expected)
    }

    @Test func `MADT is there with APICs only, and both root tables list it`() throws {
        #expect(build().memory.integer(build().rsdp.integer(24, 8) + 4, 4) == 44)
        var configuration = ACPITables.Configuration()
        configuration.interruptControllers = .init(processorCount: 2, ioAPICID: 2)
        let (memory, rsdp, _) = build(configuration)
        let madt = memory.integer(rsdp.integer(24, 8) + 44, 8)
        #expect(memory.integer(rsdp.integer(16, 4) + 40, 4) == madt)
        #expect(memory.text(madt, 4) == "APIC")
        let table = memory.table(madt)
        #expect(sum(table) == 0)
        let expected: [UInt8] = [
            0, 0, 0xE0, 0xFE, 1, 0, 0, 0,
            0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0,
            1, 12, 2, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0,
            2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 2, 10, 0, 9, 9, 0, 0, 0, 13, 0,
            4, 6, 0xFF, 0, 0, 1,
        ]
        #expect(Array(table[36...]) == expected)
    }

    @Test func `FADT allows messages when told so`() {
        var configuration = ACPITables.Configuration()
        for isAllowed in [false, true] {
            configuration.allowsMessageSignalledInterrupts = isAllowed
            let (memory, _, fadt) = build(configuration)
            #expect(memory.integer(fadt + 109, 2) & 8 == (isAllowed ? 0 : 8))
        }
    }

    private static let compiler = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
        .map { "\($0)/iasl" }.first { FileManager.default.isExecutableFile(atPath: $0) }

    @Test(.enabled(if: compiler != nil, "needs iasl (acpica-tools)"), arguments: [false, true])
    func `reference compiler reads the DSDT and compiles what it reads`(hasAPICs: Bool) throws {
        let compiler = try #require(Self.compiler)
        var configuration = ACPITables.Configuration()
        configuration.pciInterrupts = (1...31).map {
            .init(device: $0, line: 5 + $0 % 2, globalInterrupt: hasAPICs ? 16 + $0 % 8 : nil)
        }
        if hasAPICs { configuration.interruptControllers = .init(processorCount: 3, ioAPICID: 3) }
        let (memory, rsdp, fadt) = build(configuration)
        let folder = FileManager.default.temporaryDirectory.appending(path: "dsdt-\(UUID())")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let dsdt = memory.table(memory.integer(fadt + 140, 8))
        try Data(dsdt).write(to: folder.appending(path: "dsdt.aml"))
        try Data(memory.table(fadt)).write(to: folder.appending(path: "facp.aml"))
        if hasAPICs {
            try Data(memory.table(memory.integer(rsdp.integer(24, 8) + 44, 8))).write(to: folder.appending(path: "apic.aml"))
        }
        for arguments in [["-d", "dsdt.aml"], ["-d", "facp.aml"], ["-p", "again", "dsdt.dsl"]] + (hasAPICs ? [["-d", "apic.aml"]] : []) {
            let process = Process()
            process.executableURL = URL(filePath: compiler)
            process.arguments = arguments
            process.currentDirectoryURL = folder
            let output = Pipe()
            process.standardOutput = output
            process.standardError = output
            try process.run()
            let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            #expect(process.terminationStatus == 0, "\(text)")
            #expect(!text.contains("Invalid") && !text.contains("Warning "), "\(text)")
        }
        // The compiler has its own name in the header; the code is the same.
        let again = try Data(contentsOf: folder.appending(path: "again.aml"))
        let isSame = Array(again.dropFirst(36)) == Array(dsdt.dropFirst(36))
        #expect(isSame)
    }
}
