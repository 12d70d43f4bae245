import VMM

/// A file that a multiboot kernel finds beside itself, with the text that tells it what for.
struct BootModule: Sendable {
    let file: BootFile
    let arguments: String

    /// As it lies in memory.
    struct Loaded {
        let range: Range<UInt64>
        /// Its name and arguments.
        let text: String
    }

    init(_ source: BootModuleSource) throws(MachineError) {
        file = try BootFile("module", source.file)
        arguments = source.arguments
        guard !file.path.utf8.contains(0), !arguments.utf8.contains(0) else {
            throw file.error("has a zero byte in its name or arguments", "remove it")
        }
    }

    init(file: BootFile, arguments: String) {
        self.file = file
        self.arguments = arguments
    }

    /// Loads modules one after the other, each on a page of its own.
    /// - Parameter range: memory that is free.
    static func load(
        _ modules: [BootModule], in range: Range<UInt64>, into memory: GuestMemory, _ map: MemoryMap
    ) throws(MachineError) -> [Loaded] {
        var loaded: [Loaded] = []
        var end = range.lowerBound
        for module in modules {
            let base = (end + 0xFFF) & ~0xFFF
            let count = module.file.byteCount
            let room = range.upperBound - min(base, range.upperBound)
            guard count <= room else {
                let advice =
                    range.upperBound == map.lowEnd && map.lowEnd < MemoryMap.acpiBase
                    ? "give at least -m \(megabytesText(base + min(count, MemoryMap.largest)))" : "use a smaller one"
                throw module.file.error(
                    "its \(sizeText(count)) do not fit beside the kernel, there is room for \(sizeText(room))", advice)
            }
            try module.file.load(at: 0, count: count, into: memory, base)
            end = base + count
            let text = [module.file.path, module.arguments].filter { !$0.isEmpty }.joined(separator: " ")
            loaded.append(Loaded(range: base..<end, text: text))
        }
        return loaded
    }
}

extension KernelLoader {
    /// What a multiboot kernel gets beside itself: the initial ramdisk comes first.
    var allModules: [BootModule] { (initrd.map { [BootModule(file: $0, arguments: "")] } ?? []) + modules }

    /// The command line as multiboot kernels get it. Where a name comes first as on any other command line, which is
    /// how QEMU does it.
    var namedCommandLine: String { [kernel.path, commandLine ?? ""].filter { !$0.isEmpty }.joined(separator: " ") }
}
