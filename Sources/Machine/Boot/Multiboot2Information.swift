import VMM

/// What a multiboot 2 loader tells a kernel (Multiboot2 Specification 2.0, 3.6), as tags: command line, loader's name,
/// memory and its map, modules, a copy of ACPI's root pointer, section headers, and where the kernel lies if it was
/// moved. There is no boot device, no screen, no APM, no EFI and no network: their tags are absent.
struct Multiboot2Information {
    private enum Tag: UInt32 {
        case end = 0, commandLine = 1, loaderName = 2, module = 3, memory = 4, memoryMap = 6, sections = 9, oldACPI = 14
        case newACPI = 15, loadBase = 21
    }

    static let address = BootStructures.multibootModules
    private static let capacity = BootStructures.multibootModulesCapacity

    private var tags = ByteWriter()

    init(commandLine: String, map: MemoryMap) {
        add(.commandLine) { $0.append(contentsOf: Array(commandLine.utf8) + [0]) }
        add(.loaderName) { $0.append(contentsOf: Array(MultibootInformation.loaderName.utf8) + [0]) }
        add(.memory) {
            // In KB: from 0, and from 1 MB to the first hole.
            $0.append(UInt32(truncatingIfNeeded: MemoryMap.conventionalEnd >> 10))
            $0.append(UInt32(truncatingIfNeeded: (map.lowEnd - MemoryMap.oneMegabyte) >> 10))
        }
        add(.memoryMap) {
            // The size of an entry, and its version.
            $0.append(UInt32(24))
            $0.append(UInt32(0))
            for entry in map.entries {
                $0.append(entry.base)
                $0.append(entry.byteCount)
                $0.append(entry.kind.rawValue)
                $0.append(UInt32(0))
            }
        }
    }

    mutating func addModule(_ module: BootModule.Loaded) {
        add(.module) {
            $0.append(UInt32(truncatingIfNeeded: module.range.lowerBound))
            $0.append(UInt32(truncatingIfNeeded: module.range.upperBound))
            $0.append(contentsOf: Array(module.text.utf8) + [0])
        }
    }

    mutating func addLoadBase(_ base: UInt64) { add(.loadBase) { $0.append(UInt32(truncatingIfNeeded: base)) } }

    /// Copies the root pointer, which is of revision 2: all of it, and its beginning, which is ACPI 1.0's, for kernels that
    /// know no other.
    mutating func addACPI(at rsdp: UInt64, _ memory: GuestMemory) {
        for (tag, count) in [(Tag.oldACPI, 20), (Tag.newACPI, 36)] {
            guard let pointer = memory.read(rsdp, count: count) else { continue }
            add(tag) { $0.append(contentsOf: pointer) }
        }
    }

    mutating func addSections(_ sections: ELFSections) {
        add(.sections) {
            // As the specification's own header file and GRUB have them; its text has 16 bits each.
            $0.append(UInt32(truncatingIfNeeded: sections.sections.count))
            $0.append(UInt32(truncatingIfNeeded: sections.entrySize))
            $0.append(UInt32(sections.nameIndex))
            $0.append(contentsOf: sections.table)
        }
    }

    private mutating func add(_ tag: Tag, _ body: (inout ByteWriter) -> Void) {
        var content = ByteWriter()
        body(&content)
        tags.append(tag.rawValue)
        tags.append(UInt32(truncatingIfNeeded: content.bytes.count + 8))
        tags.append(contentsOf: content.bytes)
        tags.pad(to: 8)
    }

    func write(_ memory: GuestMemory) throws(MachineError) {
        var all = self
        all.add(.end) { _ in }
        // total_size, reserved
        let byteCount = all.tags.bytes.count + 8
        guard byteCount <= Self.capacity else {
            throw MachineError(
                "multiboot information: has \(byteCount) bytes, there is room for \(Self.capacity): give fewer modules, "
                    + "shorten their arguments or the command line, or strip the kernel")
        }
        var header = ByteWriter()
        header.append(UInt32(truncatingIfNeeded: byteCount))
        header.append(UInt32(0))
        memory.write(header.bytes + all.tags.bytes, at: Self.address)
    }
}
