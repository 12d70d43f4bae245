import VMM

/// What a multiboot loader tells a kernel (Multiboot Specification 0.6.96, 3.3): memory, command line, modules, memory
/// map, loader's name. There is no boot device, no symbol table, no drive, no APM table and no video mode: the flags
/// that would tell of them are clear.
struct MultibootInformation {
    let modules: [BootModule.Loaded]
    let map: MemoryMap
    /// Where it is.
    let commandLine: UInt64

    static let loaderName = "vmd"
    /// Flags: mem_*, cmdline, mods_*, mmap_*, boot_loader_name.
    private static let flags: UInt32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    /// The fields up to the frame buffer's.
    private static let byteCount = 116

    /// Writes it and all that it points to. The order in memory is: fields, loader's name, memory map; and in an area of
    /// their own, as there may be many, module structures and their strings.
    func write(_ memory: GuestMemory) throws(MachineError) {
        let info = BootStructures.multibootInformation
        let name = info + UInt64(Self.byteCount)
        memory.write(Array(Self.loaderName.utf8) + [0], at: name)

        let mapAddress = name + UInt64(Self.loaderName.utf8.count + 1 + 3) & ~3
        var table = ByteWriter()
        for entry in map.entries {
            // The size of the rest.
            table.append(UInt32(20))
            table.append(entry.base)
            table.append(entry.byteCount)
            table.append(entry.kind.rawValue)
        }
        memory.write(table.bytes, at: mapAddress)

        let list = BootStructures.multibootModules
        var structures = ByteWriter()
        var strings: [UInt8] = []
        for module in modules {
            let address = list + UInt64(modules.count * 16 + strings.count)
            structures.append(UInt32(truncatingIfNeeded: module.range.lowerBound))
            structures.append(UInt32(truncatingIfNeeded: module.range.upperBound))
            structures.append(UInt32(truncatingIfNeeded: address))
            structures.append(UInt32(0))
            strings += Array(module.text.utf8) + [0]
        }
        let bytes = structures.bytes + strings
        guard bytes.count <= BootStructures.multibootModulesCapacity else {
            throw MachineError(
                "modules: \(modules.count) with \(strings.count) bytes of names and arguments are too many: "
                    + "give fewer or shorten them")
        }
        memory.write(bytes, at: list)

        func set(_ offset: UInt64, _ value: UInt64) { memory.store(info + offset, UInt32(truncatingIfNeeded: value)) }
        set(0, UInt64(Self.flags))
        // In KB: from 0, and from 1 MB to the first hole.
        set(4, MemoryMap.conventionalEnd >> 10)
        set(8, (map.lowEnd - MemoryMap.oneMegabyte) >> 10)
        set(16, commandLine)
        set(20, UInt64(modules.count))
        set(24, list)
        set(44, UInt64(table.bytes.count))
        set(48, mapAddress)
        set(64, name)
    }
}
