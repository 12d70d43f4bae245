import Testing

@testable import Devices

/// Loads files as SeaBIOS does, at places of its own.
private struct Loader {
    var files: [String: [UInt8]]
    let places: [String: UInt64]
    private(set) var allocated: [String: (alignment: UInt32, zone: UInt8)] = [:]

    init(_ files: [FirmwareConfiguration.File], places: [String: UInt64]) {
        self.files = Dictionary(uniqueKeysWithValues: files.map { ($0.name, $0.bytes) })
        self.places = places
    }

    private static func number(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    private static func text(_ bytes: ArraySlice<UInt8>) -> String { String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self) }

    mutating func execute() throws {
        let script = try #require(files["etc/table-loader"])
        try #require(script.count % 128 == 0)
        for start in stride(from: 0, to: script.count, by: 128) {
            let entry = Array(script[start..<start + 128])
            let name = Self.text(entry[4..<60])
            switch Self.number(entry[0..<4]) {
            case 1: allocated[name] = (UInt32(Self.number(entry[60..<64])), entry[64])
            case 2:
                let source = try #require(places[Self.text(entry[60..<116])])
                let offset = Int(Self.number(entry[116..<120])), count = Int(entry[120])
                var bytes = try #require(files[name])
                let value = Self.number(bytes[offset..<offset + count]) + source
                for index in 0..<count { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
                files[name] = bytes
            case 3:
                let offset = Int(Self.number(entry[60..<64])), first = Int(Self.number(entry[64..<68]))
                let count = Int(Self.number(entry[68..<72]))
                var bytes = try #require(files[name])
                bytes[offset] &-= bytes[first..<first + count].reduce(0, &+)
                files[name] = bytes
            case let command: Issue.record("command \(command)")
            }
        }
    }
}

@Suite("Table loader") struct TableLoaderTests {
    @Test(arguments: [0xEFFF_0000, 0x03FF_FC40] as [UInt64])
    func `loader makes the tables that a kernel is given directly`(address: UInt64) throws {
        var configuration = ACPITables.Configuration()
        configuration.pciInterrupts = [.init(device: 1, line: 3), .init(device: 2, line: 5)]
        var loader = Loader(ACPITables.firmwareFiles(configuration), places: ["etc/acpi/tables": address, "etc/acpi/rsdp": 0xF_5C00])
        try loader.execute()
        let (tables, rsdp) = ACPITables.build(at: address, configuration)
        #expect(loader.files["etc/acpi/tables"] == tables)
        #expect(loader.files["etc/acpi/rsdp"] == rsdp)
        #expect(loader.allocated["etc/acpi/tables"]?.alignment == 64)
        #expect(loader.allocated["etc/acpi/rsdp"]?.alignment == 16)
        #expect(loader.allocated["etc/acpi/rsdp"]?.zone == 2)
    }

    @Test func `tables without a place have neither addresses nor checksums`() throws {
        let files = ACPITables.firmwareFiles(.init())
        let (tables, _) = ACPITables.build(at: 0x1000_0000, .init())
        let bytes = try #require(files.first { $0.name == "etc/acpi/tables" }).bytes
        #expect(bytes.count == tables.count && bytes != tables)
    }
}

@Suite("SMBIOS tables") struct SMBIOSTablesTests {
    /// A structure as an operating system finds it.
    private struct Structure {
        let type: UInt8
        let formatted: [UInt8]
        let strings: [String]
    }

    private func parse(_ bytes: [UInt8]) throws -> [Structure] {
        var list: [Structure] = []
        var place = 0
        while place < bytes.count {
            let count = Int(bytes[place + 1])
            var end = place + count
            var strings: [String] = []
            while bytes[end] != 0 {
                let text = bytes[end...].prefix { $0 != 0 }
                strings.append(String(decoding: text, as: UTF8.self))
                end += text.count + 1
            }
            end += strings.isEmpty ? 2 : 1
            list.append(Structure(type: bytes[place], formatted: Array(bytes[place..<place + count]), strings: strings))
            place = end
        }
        try #require(place == bytes.count)
        return list
    }

    private func build(_ memory: [(UInt64, UInt64)]) throws -> (list: [Structure], anchor: [UInt8], byteCount: Int) {
        var configuration = SMBIOSTables.Configuration()
        configuration.memory = memory.map { (base: $0.0, byteCount: $0.1) }
        configuration.uuid = (0..<16).map { UInt8($0) }
        let (tables, anchor) = SMBIOSTables.build(configuration)
        return (try parse(tables), anchor, tables.count)
    }

    /// DSP0134 2.8's lengths.
    private static let lengths: [UInt8: Int] = [0: 24, 1: 27, 3: 22, 4: 42, 16: 23, 17: 40, 19: 31, 32: 11, 127: 4]

    @Test func `structures have the specification's lengths and end properly`() throws {
        let (list, anchor, byteCount) = try build([(0, 1 << 30)])
        #expect(list.map(\.type) == [0, 1, 3, 4, 16, 17, 19, 32, 127])
        for structure in list { #expect(structure.formatted.count == Self.lengths[structure.type], "\(structure.type)") }
        #expect(anchor.count == 31 && anchor.starts(with: Array("_SM_".utf8)) && Array(anchor[16..<21]) == Array("_DMI_".utf8))
        #expect(Int(anchor[22]) | Int(anchor[23]) << 8 == byteCount)
        #expect(anchor[28] == 9)
    }

    @Test func `handles are unique and references lead somewhere`() throws {
        let (list, _, _) = try build([(0, 1 << 30), (1 << 32, 1 << 30)])
        let handles = list.map { UInt16($0.formatted[2]) | UInt16($0.formatted[3]) << 8 }
        #expect(Set(handles).count == handles.count)
        let array = try #require(list.first { $0.type == 16 })
        for (type, offset) in [(17, 4), (19, 12)] as [(UInt8, Int)] {
            let structure = try #require(list.first { $0.type == type })
            #expect(structure.formatted[offset...offset + 1] == array.formatted[2...3])
        }
    }

    @Test func `every string that is named is there`() throws {
        for structure in try build([(0, 1 << 30)]).list {
            let strings: [Int] =
                switch structure.type {
                case 0: [4, 5, 8]
                case 1: [4, 5, 6]
                case 3: [4]
                case 4: [4, 7, 16]
                case 17: [0x10, 0x17]
                default: []
                }
            #expect(strings.map { Int(structure.formatted[$0]) } == Array(0..<strings.count).map { $0 + 1 })
            #expect(structure.strings.count == strings.count)
        }
    }

    @Test(arguments: [(16 << 20, 16, 16 << 10), (64 << 30, 0x7FFF, 64 << 20), (4 << 40, 0x7FFF, 0x8000_0000)] as [(UInt64, UInt64, UInt64)])
    func `memory of any size is told`(byteCount: UInt64, module: UInt64, array: UInt64) throws {
        let (list, _, _) = try build([(0, byteCount)])
        func number(_ type: UInt8, _ offset: Int, _ count: Int) throws -> UInt64 {
            let structure = try #require(list.first { $0.type == type })
            return structure.formatted[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt64($1) }
        }
        #expect(try number(17, 12, 2) == module)
        #expect(try number(17, 28, 4) == (module == 0x7FFF ? byteCount >> 20 : 0))
        #expect(try number(16, 7, 4) == array)
        #expect(try number(16, 15, 8) == (array == 0x8000_0000 ? byteCount : 0))
        let isLong = byteCount >= 4 << 40
        #expect(try number(19, 8, 4) == (isLong ? 0xFFFF_FFFF : byteCount >> 10 - 1))
        #expect(try number(19, 23, 8) == (isLong ? byteCount - 1 : 0))
    }
}

@Suite("VGA registers") struct VGARegistersTests {
    @Test func `cursor and start are words of the CRT controller, by either pair of ports`() {
        var vga = VGARegisters()
        for (index, value) in [(0x0E, 0x01), (0x0F, 0x41), (0x0C, 0x00), (0x0D, 0x50)] as [(UInt8, UInt8)] {
            vga.write(0x3D4, index)
            vga.write(0x3D5, value)
        }
        #expect(vga.cursor == 0x141 && vga.start == 80)
        vga.write(0x3B4, 0x0F)
        #expect(vga.read(0x3B5) == 0x41 && vga.read(0x3D4) == 0x0F)
    }

    @Test func `attribute port turns between index and data until the status is read`() {
        var vga = VGARegisters()
        vga.write(0x3C0, 0x10)
        vga.write(0x3C0, 0x55)
        #expect(vga.read(0x3C1) == 0x55)
        vga.write(0x3C0, 0x11)
        _ = vga.read(0x3DA)
        vga.write(0x3C0, 0x10)
        #expect(vga.read(0x3C0) == 0x10 && vga.read(0x3C1) == 0x55)
    }

    @Test func `retrace comes and goes for who waits for it`() {
        var vga = VGARegisters()
        let seen = (0..<4).map { _ in vga.read(0x3DA) & 8 }
        #expect(Set(seen) == [0, 8])
    }
}
