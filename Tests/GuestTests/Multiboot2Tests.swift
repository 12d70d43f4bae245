import Testing

extension GuestTests {
    /// Multiboot 2 kernels: the one of `Guests/multiboot2`, which prints all that it was given, in its four shapes.
    @Suite struct Multiboot2 {
        @Test(arguments: ["elf32", "elf64", "flat", "moved"])
        func `every tag is as the specification says`(shape: String) throws {
            let scratch = try Scratch()
            let ramdisk = try scratch.file("ramdisk", Array("abc".utf8))
            let module = try scratch.file("module", [UInt8](repeating: 1, count: 4097))
            let kernel = "\(Paths.guests)/multiboot2/\(shape)"
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-b", kernel, "--cmdline", "hello you", "--debug-exit", "0xf4"]
                    + ["--module", "\(module),first, second", "--initrd", ramdisk] + Paths.engine, input: .nothing)
            #expect(try guest.status(within: 20) == 43)
            let said = KernelReport(guest.text)

            #expect(said.numbers("eax") == [0x36D7_6289])
            #expect(said.numbers("eflags") == [0])
            #expect(said.numbers("cr0") == [1])
            #expect(said.numbers("rights") == [0xC09A00, 0xC09200, 0xC09200, 0xC09200, 0xC09200, 0xC09200])
            #expect(said.numbers("limit") == Array(repeating: .max, count: 6))
            #expect(said.numbers("bss") == [0])
            #expect(said.numbers("data") == [0x600D_DA7A])

            #expect(said.numbers("aligned") == [1] && said.numbers("reserved") == [0] && said.numbers("end_size") == [8])
            let isELF = shape != "flat"
            let isMoved = shape == "moved"
            #expect(
                said.numbers("tag") == [1, 2, 4, 6] + (isMoved ? [21] : []) + [14, 15] + (isELF ? [9] : []) + [3, 3])
            #expect(said.values("cmdline") == ["\(kernel) hello you"])
            #expect(said.values("boot_loader_name") == ["vmd"])
            #expect(said.numbers("mem_lower") == [576] && said.numbers("mem_upper") == [63 << 10])
            #expect(said.numbers("entry_size") == [24] && said.numbers("entry_version") == [0])
            #expect(
                said.values("mmap") == [
                    "0x0000000000000000+0x0000000000090000:1", "0x0000000000090000+0x0000000000070000:2",
                    "0x0000000000100000+0x0000000003f00000:1", "0x00000000efff0000+0x0000000000010000:2",
                ])
            #expect(said.values("mod_string") == [ramdisk, "\(module) first, second"])
            #expect(said.numbers("mod_size") == [3, 4097])
            #expect(said.numbers("mod_start").allSatisfy { $0.map { $0 % 4096 == 0 } ?? false })
            #expect(
                said.numbers("mod_sum") == [
                    KernelReport.sum(Array("abc".utf8)), KernelReport.sum([UInt8](repeating: 1, count: 4097)),
                ])
            // "RSD ", twice, each with its checksum.
            #expect(said.numbers("rsdp_size") == [20, 36])
            #expect(said.numbers("rsdp") == [0x2044_5352, 0x2044_5352])
            #expect(said.numbers("rsdp_sum") == [0, 0])
            // The kernel's own symbols, and its place.
            #expect(said.numbers("entsize") == (isELF ? [shape == "elf64" ? 64 : 40] : []))
            #expect(said.numbers("symbol") == (isELF ? [1] : []))
            #expect(said.numbers("load_base") == (isMoved ? [0x2F0_0000] : []))
            #expect(said.numbers("lies_at") == said.numbers("load_base"))
            #expect(said.lines.last == "end")
        }
    }
}
