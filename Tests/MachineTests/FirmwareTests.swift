import DiskImage
import Devices
import Foundation
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing
import VMM

@testable import Machine

/// 64 bytes that are firmware: hlt at the reset vector, numbered bytes before it.
private func image(_ byteCount: Int = 64) -> [UInt8] {
    (0..<byteCount).map { $0 == byteCount - 16 ? 0xF4 : UInt8(truncatingIfNeeded: $0 | 0x80) }
}

@Suite("Firmware image", .timeLimit(.minutes(1))) struct FirmwareImageTests {
    private func boot(_ bytes: [UInt8], _ change: (inout MachineConfiguration) -> Void = { _ in }) throws -> Boot {
        let file = TemporaryFile(bytes)
        var configuration = MachineConfiguration(kernel: file.path, memoryByteCount: 32 << 20)
        change(&configuration)
        return try withExtendedLifetime(file) { try Boot(configuration) }
    }

    private func isFirmware(_ bytes: [UInt8]) throws -> Bool { try boot(bytes).firmwareOptions != nil }

    @Test func `what is no kernel and has an instruction at the reset vector is firmware`() throws {
        #expect(try isFirmware(image()))
        #expect(try isFirmware(image(15)))
        #expect(try isFirmware(image(4 << 20)))
        #expect(try !isFirmware(bzImage()))
        #expect(try !isFirmware(pvhImage()))
    }

    /// As U-Boot's ROMs have one.
    @Test func `a multiboot header that says that the file lies in ROM leaves it firmware`() throws {
        func rom(at address: UInt32) -> [UInt8] {
            var file = Fields(bytes: image(4096))
            let flags: UInt32 = 1 << 16
            let header = [0x1BAD_B002, flags, 0 &- 0x1BAD_B002 &- flags, address + 0x20, address, 0, 0, address]
            for (index, field) in header.enumerated() { file.set(0x20 + index * 4, field) }
            return file.bytes
        }
        #expect(try isFirmware(rom(at: 0xFFFF_F000)))
        #expect(try !isFirmware(rom(at: 0x10_0000)))
    }

    @Test(arguments: [
        image(14), image((4 << 20) + 1), Array("a text that somebody mistook for a kernel\n".utf8),
        Array(repeating: 0, count: 4096), Array(repeating: 0xFF, count: 4096), [0x1F, 0x8B] + image(),
        image(0x8001) + Array("CD001".utf8) + image(),
    ])
    func `other files are kernels, which loading then refuses`(bytes: [UInt8]) throws { #expect(try !isFirmware(bytes)) }

    @Test func `image ends at 4 GB, and its top at 1 MB`() throws {
        for byteCount in [15, 64, 4096, 5000, 128 << 10, 448 << 10, 512 << 10, 4 << 20] {
            let bytes = image(byteCount)
            guard case .firmware(let image, _) = try boot(bytes) else {
                Issue.record("\(byteCount) bytes are no firmware")
                continue
            }
            let map = try MemoryMap(byteCount: 32 << 20, firmwareByteCount: UInt64(byteCount))
            let memory = try GuestMemory(ranges: map.ranges, rom: map.rom)
            let state = try image.load(into: memory)
            #expect(memory.read(1 << 32 - UInt64(byteCount), count: byteCount) == bytes)
            let top = min(byteCount, 448 << 10)
            #expect(memory.read(1 << 20 - UInt64(top), count: top) == bytes.suffix(top))
            #expect(memory.read(1 << 20 - UInt64(top) - 16, count: 16) == Array(repeating: 0, count: 16))
            #expect(!memory.store(0xFFFF_FFF0, 0 as UInt8))
            #expect(state.rip == 0xFFF0 && state.cs.base == 0xFFFF_0000 && state.cs.selector == 0xF000)
            #expect(state.modeName == "real mode")
        }
    }

    @Test func `firmware's map leaves all below the devices to it`() throws {
        let map = try MemoryMap(byteCount: 8 << 30, firmwareByteCount: 5000)
        #expect(map.rom?.base == 1 << 32 - 8192 && map.rom?.byteCount == 8192)
        #expect(map.ranges.map(\.base) == [0, 1 << 32])
        #expect(map.entries.map(\.base) == [0, 0xFFC0_0000, 1 << 32])
        #expect(map.entries.map(\.kind) == [.ram, .reserved, .ram])
    }

    @Test func `what only a kernel takes is refused`() {
        let file = TemporaryFile([1])
        #expect(message { _ = try boot(image()) { $0.initrd = .path(file.path) } }.contains("firmware takes none"))
        #expect(message { _ = try boot(image()) { $0.modules = [BootModuleSource(.path(file.path))] } }.contains("firmware takes none"))
        #expect(message { _ = try boot(image()) { $0.commandLine = "x" } }.contains("firmware takes none"))
    }

    @Test func `network boot takes an option ROM and nothing else`() throws {
        let rom = TemporaryFile([0x55, 0xAA, 1] + Array(repeating: 0, count: 509))
        let options = try boot(image()) {
            $0.bootDevice = .net
            $0.networkROM = .path(rom.path)
        }.firmwareOptions
        #expect(options?.optionROM?.bytes.count == 512)
        for bytes in [[0x55], Array(repeating: 0x55, count: 200 << 10)] as [[UInt8]] {
            let other = TemporaryFile(bytes)
            let error = message {
                _ = try boot(image()) {
                    $0.bootDevice = .net
                    $0.networkROM = .path(other.path)
                }
            }
            #expect(error.hasPrefix("network boot ROM ") && error.hasSuffix("give the ROM of ipxe-qemu"))
        }
    }

    @Test func `missing firmware is one line that names the package`() {
        let nowhere = DefaultFirmware.Search(paths: ["/no/such/file"], complaint: DefaultFirmware.bios.complaint)
        let error = message { _ = try nowhere.open() }
        #expect(error.hasPrefix("vmm bios firmware file not found") && error.contains("seabios"))
    }

    /// KVM's CPU halts in the kernel, where somebody has to look for it.
    @Test(arguments: [EngineChoice.translator, .kvm]) func `firmware that halts with interrupts off ends its machine`(choice: EngineChoice) throws {
        let file = TemporaryFile(image())
        let (engine, features) = try choice.makeForTest()
        let running = try RunningMachine(
            MachineConfiguration(kernel: file.path, memoryByteCount: 32 << 20), engine, features: features, terminal: Recorder())
        #expect(running.end() == .failed("guest halted for good: interrupts are off at rip 0xfff1, real mode"))
    }

    @Test func `restart lays the image down again`() throws {
        let file = TemporaryFile(image(8192))
        let clock = try HostClock()
        defer { clock.stop() }
        let seen = Mutex<[[UInt8]]>([])
        let machine = try Machine(
            MachineConfiguration(kernel: file.path, memoryByteCount: 32 << 20),
            engine: FakeEngine { cpu in
                let memory = cpu.wiring.memory
                seen.withLock { $0.append(memory.read(0xF_F000, count: 0x1000) ?? []) }
                memory.store(0xF_FF00, UInt64.max)
                if cpu.bootCount == 2 { return .failure("twice") }
                return .shutdown(ShutdownReason(rip: 0, mode: "real mode", reason: "triple fault"))
            }, features: .translator, clock: clock, terminal: Recorder())
        let ended = Monitor(false)
        try machine.start { event in
            guard case .ended = event else { return }
            ended.withLock { $0 = true }
            ended.broadcast()
        }
        ended.withLock(waitingWhile: { !$0 }) { _ in }
        machine.join()
        #expect(seen.withLock { $0 } == Array(repeating: Array(image(8192).suffix(4096)), count: 2))
    }
}

@Suite("Firmware files") struct FirmwareFilesTests {
    private func order(_ device: BootDevice?, disks: [UInt8] = [], cdrom: UInt8? = nil) throws -> String? {
        var configuration = MachineConfiguration(kernel: nil)
        let rom = TemporaryFile([0x55, 0xAA])
        configuration.bootDevice = device
        configuration.networkROM = .path(rom.path)
        let files = FirmwareFiles(
            options: try FirmwareOptions(configuration), map: try MemoryMap(byteCount: 8 << 30, firmwareByteCount: 4096),
            tables: .init(), disks: disks, cdrom: cdrom)
        return files.all.first { $0.name == "bootorder" }.map { String(decoding: $0.bytes, as: UTF8.self) }
    }

    @Test func `order says what to boot from, and behind the end what else there is`() throws {
        #expect(try order(nil, disks: [2]) == nil)
        #expect(try order(.disk, disks: [2, 10], cdrom: 11) == "/pci@i0cf8/*@2\n/pci@i0cf8/*@a\nHALT\n/pci@i0cf8/*@b/*@0/*@0,0\n/pci@i0cf8/*@b/*@0/*@0,40000100\0")
        #expect(
            try order(.cdrom, disks: [2], cdrom: 3)
                == "/pci@i0cf8/*@3/*@0/*@0,0\n/pci@i0cf8/*@3/*@0/*@0,40000100\nHALT\n/pci@i0cf8/*@2\0")
        let net = try order(.net, disks: [2])
        #expect(net?.hasPrefix("/rom@genroms/") == true && net?.hasSuffix("\nHALT\n/pci@i0cf8/*@2\0") == true)
        #expect(try order(.disk) == "HALT\0")
    }
}

@Suite("Text screen") struct TextScreenTests {
    private func page(_ rows: [Int: String]) -> [UInt8] {
        var page = [UInt8](repeating: 0, count: TextScreen.cellCount)
        for (row, text) in rows { for (column, byte) in text.utf8.enumerated() { page[row * 80 + column] = byte } }
        return TextScreen.normalized(page)
    }

    private func show(
        _ screen: inout TextScreen, _ rows: [Int: String], cursor: Int = -1, known: String = ""
    ) -> String {
        let known = Array(known.utf8)
        let bytes = screen.show(page(rows), cursor: cursor) { known.firstRange(of: $0) != nil }
        return String(decoding: bytes, as: UTF8.self).replacing("\u{1B}", with: "^")
    }

    @Test func `what changed is written where it is`() {
        var screen = TextScreen()
        #expect(show(&screen, [0: "hello", 24: "end"]) == "^[1;1Hhello^[25;1Hend")
        #expect(show(&screen, [0: "hello", 24: "end"]) == "")
        #expect(show(&screen, [0: "help!", 24: "end"], cursor: 5) == "^[1;4Hp!^[1;6H")
        #expect(show(&screen, [0: "he", 24: "end"]) == "^[1;3H^[K")
        #expect(show(&screen, [:]) == "^[2J^[1;1H")
    }

    @Test func `text in a row that was blank clears what the terminal has in front of it`() {
        var screen = TextScreen()
        #expect(show(&screen, [3: "   middle"]) == "^[4;4H^[1Kmiddle")
        #expect(show(&screen, [3: "   middle end"]) == "^[4;11Hend")
    }

    @Test func `rows that go up scroll the terminal`() {
        var screen = TextScreen()
        let rows = Dictionary(uniqueKeysWithValues: (0..<25).map { ($0, "line \($0)") })
        _ = show(&screen, rows)
        let next = Dictionary(uniqueKeysWithValues: (0..<25).map { ($0, "line \($0 + 2)") })
        #expect(show(&screen, next) == "^[25;1H\n\n^[24;1Hline 25^[25;1Hline 26")
    }

    @Test func `rows that the terminal knows are left out`() {
        var screen = TextScreen()
        #expect(show(&screen, [0: "both", 1: "screen alone"], known: "xx both yy") == "^[2;1Hscreen alone")
        #expect(show(&screen, [0: "both", 1: "screen alone", 2: "both again"], known: "both again") == "")
    }

    @Test func `characters are code page 437's`() {
        var screen = TextScreen()
        var cells = [UInt8](repeating: 0, count: TextScreen.cellCount)
        cells.replaceSubrange(0..<4, with: [0xC9, 0xCD, 0xBB, 0x01])
        let bytes = screen.show(TextScreen.normalized(cells), cursor: -1) { _ in false }
        #expect(String(decoding: bytes, as: UTF8.self).hasSuffix("╔═╗☺"))
    }

    @Test func `hostile pages and cursors trap nothing`() {
        var random = SystemRandomNumberGenerator()
        var screen = TextScreen()
        for _ in 0..<50 {
            let cells = (0..<TextScreen.cellCount).map { _ in UInt8.random(in: 0...255, using: &random) }
            _ = screen.show(TextScreen.normalized(cells), cursor: .random(in: -70000...70000, using: &random)) { _ in false }
        }
        #expect(screen.show([1, 2], cursor: 0) { _ in false } == [])
    }
}

private let hasSeaBIOS = DefaultFirmware.bios.paths.contains { FileManager.default.isReadableFile(atPath: $0) }

/// SeaBIOS as the host has it, in this process.
@Suite("SeaBIOS", .timeLimit(.minutes(4)), .enabled(if: hasSeaBIOS, "needs the package seabios"))
struct SeaBIOSTests {
    @Test(arguments: DefaultFirmware.bios.paths.filter { FileManager.default.isReadableFile(atPath: $0) })
    func `machine without a disk says so on the serial console`(path: String) throws {
        let (engine, _) = try EngineChoice.translator.make()
        let terminal = Recorder()
        let running = try RunningMachine(MachineConfiguration(kernel: path, memoryByteCount: 16 << 20), engine, terminal: terminal)
        #expect(terminal.wait(for: "SeaBIOS (version"))
        #expect(terminal.wait(for: "No bootable device."))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(!running.events.contains { if case .restarted = $0 { true } else { false } })
    }

    @Test func `boot order is obeyed`() throws {
        var configuration = MachineConfiguration(kernel: nil, memoryByteCount: 16 << 20)
        configuration.bootDevice = .disk
        let (engine, _) = try EngineChoice.translator.make()
        let terminal = Recorder()
        let running = try RunningMachine(configuration, engine, terminal: terminal)
        #expect(terminal.wait(for: "No bootable device."))
        #expect(!terminal.text.contains("Booting from Floppy"))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    /// Prints by the firmware's service, then writes to row 11 of the screen by itself.
    private static let program: [UInt8] = [
        0x60, 0x1E, 0x06, 0x0E, 0x1F, 0xFC,  // pusha; push %ds; push %es; push %cs; pop %ds; cld
        0xBE, 0x50, 0x00,  // mov $service, %si
        0xAC, 0x84, 0xC0, 0x74, 0x09,  // 1: lodsb; test %al, %al; jz 2f
        0xB4, 0x0E, 0xBB, 0x07, 0x00, 0xCD, 0x10, 0xEB, 0xF2,  // mov $0xe, %ah; mov $7, %bx; int $0x10; jmp 1b
        0xB8, 0x00, 0xB8, 0x8E, 0xC0, 0xBF, 0x40, 0x06,  // 2: mov $0xb800, %ax; mov %ax, %es; mov $1600, %di
        0xBE, 0x5D, 0x00, 0xB4, 0x07,  // mov $hand, %si; mov $7, %ah
        0xAC, 0xAB, 0x84, 0xC0, 0x75, 0xFA,  // 3: lodsb; stosw; test %al, %al; jnz 3b
        0x07, 0x1F, 0x61, 0x31, 0xC0, 0xCB,  // pop %es; pop %ds; popa; xor %ax, %ax; lret
    ]

    /// The program in an option ROM, which SeaBIOS runs at its entry, byte 3.
    private static var optionROM: [UInt8] {
        var rom = [UInt8](repeating: 0, count: 512)
        rom.replaceSubrange(0..<5, with: [0x55, 0xAA, 1, 0xEB, 0x1B])
        rom.replaceSubrange(0x20..<0x20 + program.count, with: program)
        rom.replaceSubrange(0x50..<0x50 + 12, with: Array("by service\r\n".utf8))
        rom.replaceSubrange(0x5D..<0x5D + 7, with: Array("by hand".utf8))
        rom[511] = 0 &- rom.reduce(0, &+)
        return rom
    }

    @Test func `what a program prints and what it writes to the screen are both on the serial console`() throws {
        let rom = TemporaryFile(Self.optionROM)
        var configuration = MachineConfiguration(kernel: nil, memoryByteCount: 16 << 20)
        configuration.bootDevice = .net
        configuration.networkROM = .path(rom.path)
        let (engine, _) = try EngineChoice.translator.make()
        let terminal = Recorder()
        let running = try RunningMachine(configuration, engine, terminal: terminal)
        #expect(terminal.wait(for: "by service"))
        #expect(terminal.wait(for: "\u{1B}[11;1Hby hand"))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
        #expect(terminal.text.components(separatedBy: "by service").count == 2, "nothing is shown twice")
    }

    private static let hasIPXE = DefaultFirmware.networkROM.paths.contains { FileManager.default.isReadableFile(atPath: $0) }

    @Test(.enabled(if: hasIPXE, "needs the package ipxe-qemu"))
    func `iPXE's option ROM runs to its prompt`() throws {
        var configuration = MachineConfiguration(kernel: nil, memoryByteCount: 32 << 20)
        configuration.bootDevice = .net
        let (engine, _) = try EngineChoice.translator.make()
        let terminal = Recorder()
        let running = try RunningMachine(configuration, engine, terminal: terminal)
        // Where nobody presses a key, it waits for a while.
        #expect(terminal.wait(for: "Press Ctrl-B for the iPXE command line"))
        // The port takes it when the firmware has looked for keys for a while.
        var attempts = 0
        while running.machine.serialPort.receive([0x02]) == 0, attempts < 5000 {
            attempts += 1
            usleep(1000)
        }
        #expect(terminal.wait(for: "iPXE>"))
        running.machine.requestStop()
        #expect(running.end() == .stopped)
    }

    /// Prints by the firmware's service, then by the serial port, and ends the machine with a status.
    private static let bootSector: [UInt8] = [
        0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xD0,  // cli; xor %ax, %ax; mov %ax, %ds; and %es; and %ss
        0xBC, 0x00, 0x7C, 0xFB, 0xFC, 0xBE, 0x40, 0x7C,  // mov $0x7c00, %sp; sti; cld; mov $service, %si
        0xAC, 0x84, 0xC0, 0x74, 0x09,  // 1: lodsb; test %al, %al; jz 2f
        0xB4, 0x0E, 0xBB, 0x07, 0x00, 0xCD, 0x10, 0xEB, 0xF2,  // mov $0xe, %ah; mov $7, %bx; int $0x10; jmp 1b
        0xBA, 0xF8, 0x03, 0xBE, 0x60, 0x7C,  // 2: mov $0x3f8, %dx; mov $serial, %si
        0xAC, 0xEE, 0x84, 0xC0, 0x75, 0xFA,  // 3: lodsb; out %al, (%dx); test %al, %al; jnz 3b
        0xB0, 0x2A, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD,  // mov $0x2a, %al; out %al, $0xf4; 4: hlt; jmp 4b
    ]

    private static func disk(_ signature: [UInt8] = [0x55, 0xAA]) -> [UInt8] {
        var sector = bootSector + [UInt8](repeating: 0, count: 512 - bootSector.count)
        sector.replaceSubrange(0x40..<0x40 + 13, with: Array("boot sector\r\n".utf8))
        sector.replaceSubrange(0x60..<0x60 + 8, with: Array("serial\r\n".utf8))
        sector.replaceSubrange(510..<512, with: signature)
        return sector + [UInt8](repeating: 0, count: (1 << 20) - 512)
    }

    /// - Parameter path: of firmware.
    private func boot(
        _ path: String?, _ disks: [[UInt8]], from device: BootDevice? = nil, on choice: EngineChoice = .translator
    ) throws -> (Machine.Outcome?, String) {
        let files = disks.map { TemporaryFile($0) }
        var configuration = MachineConfiguration(
            kernel: path, memoryByteCount: 32 << 20, debugExitPort: 0xF4, disks: try files.map { try DiskSource.open(ImageLocation(path: $0.path, format: .raw)) })
        configuration.bootDevice = device
        let (engine, features) = try choice.makeForTest()
        let terminal = Recorder()
        let running = try RunningMachine(configuration, engine, features: features, terminal: terminal)
        if terminal.wait(for: "No bootable device.", seconds: 1) { running.machine.requestStop() }
        return (withExtendedLifetime(files) { running.end(seconds: Self.patience(choice)) }, terminal.text)
    }

    /// A page-table-based KVM emulates firmware instruction by instruction.
    private static func patience(_ choice: EngineChoice) -> UInt64 { choice == .kvm ? 200 : 20 }

    /// Firmware's own driver reads the disk, and its timer's and keyboard's interrupts pass the local APIC, which no one has set up.
    @Test(.timeLimit(.minutes(4))) func `boot sector of a disk runs on KVM`() throws {
        let (outcome, text) = try boot(nil, [Self.disk()], on: .kvm)
        #expect(outcome == .exited(0x55))
        #expect(text.contains("Booting from Hard Disk") && text.contains("boot secto") && text.contains("erial\r\n"))
    }

    @Test(arguments: DefaultFirmware.bios.paths.filter { FileManager.default.isReadableFile(atPath: $0) })
    func `boot sector of a disk runs and its prints are seen`(path: String) throws {
        let (outcome, text) = try boot(path, [Self.disk()])
        #expect(outcome == .exited(0x55))
        #expect(text.contains("Booting from Hard Disk") && text.contains("boot secto") && text.contains("serial\r\n"))
    }

    @Test(arguments: [nil, .disk] as [BootDevice?])
    func `first disk is the one that is booted`(device: BootDevice?) throws {
        #expect(try boot(nil, [Self.disk(), Self.disk([0, 0])], from: device).0 == .exited(0x55))
    }

    @Test func `disk without a boot sector is told`() throws {
        let (outcome, text) = try boot(nil, [Self.disk([0, 0])])
        #expect(outcome == .stopped)
        #expect(text.contains("Boot failed: not a bootable disk"))
    }
}
