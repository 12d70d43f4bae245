/// What firmware tells an operating system about the computer as a thing: maker, model, serial number, memory modules
/// (DMTF DSP0134, SMBIOS 2.8). SeaBIOS puts them into memory and makes the checksums.
public enum SMBIOSTables {
    /// What differs between machines.
    public struct Configuration: Sendable {
        /// Ranges of RAM, in ascending order.
        public var memory: [(base: UInt64, byteCount: UInt64)] = []
        /// 16 bytes as CPUs show them (7.2.1): the first three fields little-endian. All zeros: not set.
        public var uuid = [UInt8](repeating: 0, count: 16)
        public var processors: UInt8 = 1
        public init() {}
    }

    /// Handles by which structures name each other: the type's number in the upper byte.
    private enum Handle {
        static let firmware: UInt16 = 0x0000
        static let system: UInt16 = 0x0100
        static let chassis: UInt16 = 0x0300
        static let processor: UInt16 = 0x0400
        static let array: UInt16 = 0x1000
        static let device: UInt16 = 0x1100
        static let mappedAddress: UInt16 = 0x1300
        static let boot: UInt16 = 0x2000
        static let end: UInt16 = 0x7F00
    }

    private static let anchorByteCount = 31
    private static let noError: UInt16 = 0xFFFE

    /// The files in which SeaBIOS looks for them.
    public static func firmwareFiles(_ configuration: Configuration) -> [FirmwareConfiguration.File] {
        let (tables, anchor) = build(configuration)
        return [.init("etc/smbios/smbios-anchor", anchor), .init("etc/smbios/smbios-tables", tables)]
    }

    /// - Returns: the structures, and the entry point (5.2.1) without the structures' address and without checksums.
    static func build(_ configuration: Configuration) -> (tables: [UInt8], anchor: [UInt8]) {
        let byteCount = configuration.memory.reduce(0) { $0 + $1.byteCount }
        var list = [
            firmware(), system(configuration.uuid), chassis(), processor(configuration.processors), array(byteCount),
            device(byteCount),
        ]
        for (number, range) in configuration.memory.enumerated() where range.byteCount > 0 {
            list.append(mappedAddress(UInt16(number), range))
        }
        list += [boot(), Structure(type: 127, Handle.end)]
        let structures = list.map(\.bytes)

        var anchor = Structure.Fields()
        anchor.text("_SM_")
        anchor.byte(0)
        anchor.byte(UInt8(anchorByteCount))
        anchor.byte(2)
        anchor.byte(8)
        anchor.word(UInt16(structures.map(\.count).max() ?? 0))
        // Entry point revision, formatted area.
        anchor.bytes += [0, 0, 0, 0, 0, 0]
        anchor.text("_DMI_")
        anchor.byte(0)
        anchor.word(UInt16(structures.reduce(0) { $0 + $1.count }))
        anchor.dword(0)
        anchor.word(UInt16(structures.count))
        // The revision as binary-coded decimals.
        anchor.byte(0x28)
        return (structures.flatMap(\.self), anchor.bytes)
    }

    // MARK: Structures

    /// A structure's formatted area and its strings (6.1.3).
    private struct Structure {
        struct Fields {
            var bytes: [UInt8] = []
            mutating func byte(_ value: UInt8) { bytes.append(value) }
            mutating func word(_ value: UInt16) { for shift in [0, 8] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) } }
            mutating func dword(_ value: UInt32) {
                for shift in [0, 8, 16, 24] { bytes.append(UInt8(truncatingIfNeeded: value >> shift)) }
            }
            mutating func qword(_ value: UInt64) {
                dword(UInt32(truncatingIfNeeded: value))
                dword(UInt32(truncatingIfNeeded: value >> 32))
            }
            mutating func text(_ value: String) { bytes += value.utf8 }
        }

        let type: UInt8
        let handle: UInt16
        var fields = Fields()
        private var strings: [String] = []

        init(type: UInt8, _ handle: UInt16) {
            self.type = type
            self.handle = handle
        }

        /// A field that names a string by its number.
        mutating func string(_ text: String) {
            strings.append(text)
            fields.byte(UInt8(strings.count))
        }

        var bytes: [UInt8] {
            var all = Fields()
            all.byte(type)
            all.byte(UInt8(4 + fields.bytes.count))
            all.word(handle)
            all.bytes += fields.bytes
            for string in strings { all.bytes += Array(string.utf8) + [0] }
            // Two zeros end a structure that has no strings.
            if strings.isEmpty { all.byte(0) }
            all.byte(0)
            return all.bytes
        }
    }

    /// BIOS information (7.1).
    private static func firmware() -> Structure {
        var s = Structure(type: 0, Handle.firmware)
        s.string("OpenBSD vmm")
        s.string("1")
        // Start segment, and the size in units of 64 KB less one.
        s.fields.word(0xE800)
        s.string("01/01/2011")
        s.fields.byte(0)
        // Characteristics are not told; of the extensions, ACPI, and that this is a virtual machine.
        s.fields.qword(1 << 3)
        s.fields.byte(0x01)
        s.fields.byte(0x14)
        // Releases of system firmware and embedded controller: none.
        s.fields.bytes += [0, 0, 0xFF, 0xFF]
        return s
    }

    /// System information (7.2).
    private static func system(_ uuid: [UInt8]) -> Structure {
        var s = Structure(type: 1, Handle.system)
        s.string("OpenBSD")
        s.string("VMM")
        s.string("1")
        // No serial number.
        s.fields.byte(0)
        s.fields.bytes += uuid.prefix(16) + Array(repeating: 0, count: max(0, 16 - uuid.count))
        // Woken by the power switch; neither SKU nor family.
        s.fields.bytes += [6, 0, 0]
        return s
    }

    /// Chassis (7.4): "other", everything safe.
    private static func chassis() -> Structure {
        var s = Structure(type: 3, Handle.chassis)
        s.string("OpenBSD")
        s.fields.byte(1)
        s.fields.bytes += [0, 0, 0, 3, 3, 3, 2]
        s.fields.dword(0)
        // Height, power cords, contained elements, SKU.
        s.fields.bytes += [0, 0, 0, 0, 0]
        return s
    }

    /// Processor (7.5): one package.
    private static func processor(_ count: UInt8) -> Structure {
        var s = Structure(type: 4, Handle.processor)
        s.string("CPU 0")
        // A central processor of a family that is not told.
        s.fields.bytes += [3, 2]
        s.string("OpenBSD")
        s.fields.qword(0)
        s.string("1")
        // Voltage and clocks are unknown; socket populated, CPU enabled; upgrade: other.
        s.fields.byte(0)
        s.fields.word(0)
        s.fields.word(0)
        s.fields.word(0)
        s.fields.bytes += [0x41, 1]
        // No information on caches.
        for _ in 0..<3 { s.fields.word(0xFFFF) }
        s.fields.bytes += [0, 0, 0, count, count, count]
        // Characteristics: 64 bit. Family as above.
        s.fields.word(1 << 2)
        s.fields.word(2)
        return s
    }

    /// Physical memory array (7.17): system memory on the mainboard.
    private static func array(_ byteCount: UInt64) -> Structure {
        var s = Structure(type: 16, Handle.array)
        s.fields.bytes += [3, 3, 3]
        // In KB; what does not fit is in bytes further on.
        let isLarge = byteCount >> 10 >= 0x8000_0000
        s.fields.dword(isLarge ? 0x8000_0000 : UInt32(byteCount >> 10))
        s.fields.word(noError)
        s.fields.word(1)
        s.fields.qword(isLarge ? byteCount : 0)
        return s
    }

    /// Memory device (7.18): one module that is all of the memory.
    private static func device(_ byteCount: UInt64) -> Structure {
        var s = Structure(type: 17, Handle.device)
        s.fields.word(Handle.array)
        s.fields.word(noError)
        // Widths unknown; in MB, or further on.
        s.fields.word(0xFFFF)
        s.fields.word(0xFFFF)
        let megabytes = byteCount >> 20
        s.fields.word(megabytes < 0x7FFF ? UInt16(megabytes) : 0x7FFF)
        // A DIMM, in no set.
        s.fields.bytes += [9, 0]
        s.string("DIMM 0")
        s.fields.byte(0)
        // RAM, type detail "other"; speed unknown.
        s.fields.byte(7)
        s.fields.word(2)
        s.fields.word(0)
        s.string("OpenBSD")
        s.fields.bytes += [0, 0, 0, 0]
        s.fields.dword(megabytes < 0x7FFF ? 0 : UInt32(truncatingIfNeeded: megabytes & 0x7FFF_FFFF))
        // Configured speed and voltages.
        for _ in 0..<4 { s.fields.word(0) }
        return s
    }

    /// Memory array mapped address (7.20).
    private static func mappedAddress(_ number: UInt16, _ range: (base: UInt64, byteCount: UInt64)) -> Structure {
        var s = Structure(type: 19, Handle.mappedAddress + number)
        let last = range.base + range.byteCount - 1
        // In KB, unless that does not fit.
        let isLarge = last >> 10 >= 0xFFFF_FFFF
        s.fields.dword(isLarge ? 0xFFFF_FFFF : UInt32(range.base >> 10))
        s.fields.dword(isLarge ? 0xFFFF_FFFF : UInt32(last >> 10))
        s.fields.word(Handle.array)
        s.fields.byte(1)
        s.fields.qword(isLarge ? range.base : 0)
        s.fields.qword(isLarge ? last : 0)
        return s
    }

    /// System boot information (7.33): no errors.
    private static func boot() -> Structure {
        var s = Structure(type: 32, Handle.boot)
        s.fields.bytes += Array(repeating: 0, count: 7)
        return s
    }
}
