import Testing

extension GuestTests {
    /// OpenBSD's way into a kernel: the one of `Guests/openbsd`, which prints all that it was given, for both processors.
    @Suite struct OpenBSDKernel {
        private static func run(_ kernel: String) throws -> KernelReport {
            let guest = try GuestProcess(
                ["run", "-m", "64M", "-b", "\(Paths.guests)/openbsd/\(kernel)", "--debug-exit", "0xf4"] + Paths.engine,
                input: .nothing)
            #expect(try guest.status(within: 20) == 43)
            return KernelReport(guest.text)
        }

        @Test(arguments: ["amd64", "i386", "amd64.gz"])
        func `everything is as boot leaves it`(kernel: String) throws {
            let said = try Self.run(kernel)
            let is64 = kernel != "i386"
            // Paging is on, in long mode's compatibility mode or with 4 MB pages; interrupts are off; segments are flat.
            #expect(said.numbers("eflags").map { ($0 ?? .max) & 0x3_0200 } == [0])
            #expect(said.numbers("cr0") == [0x8000_0001])
            #expect(said.numbers("cr3") == [is64 ? 0x1_1000 : 0x1_2000])
            #expect(said.numbers("cr4") == [is64 ? 0x30 : 0x10])
            #expect(said.numbers("efer") == [is64 ? 0x500 : 0])
            #expect(said.numbers("esp") == [0xFFDC])
            #expect(said.numbers("selector") == [8, 0x10, 0x10, 0x10, 0x10, 0x10])
            // Code of 32 bits, data, code of 64 bits; without their accessed bits, which a CPU may set.
            #expect(
                said.values("descriptor") == [
                    "0x0000000000000000", "0x00cf9a000000ffff", "0x00cf92000000ffff", "0x00af9a000000ffff",
                ])
            #expect(said.numbers("gdt") == [0x1_0000] && said.numbers("gdt_limit") == [31])
            #expect(said.numbers("bss") == [0])
            #expect(said.numbers("data") == [0x600D_DA7A])
            // The arguments of OpenBSD's start: sd0a, as the first disk is called.
            #expect(said.numbers("howto") == [0])
            #expect(said.numbers("bootdev") == [0xA000_0004])
            #expect(said.numbers("version") == [0x0E])
            #expect(said.numbers("extmem") == [0] && said.numbers("basemem") == [0])
            #expect(said.numbers("arguments") == [0x2000])
            #expect(said.numbers("size") == [UInt32(112 + 44 + 4), 112, 44])
            // Memory map and console.
            #expect(said.numbers("argument") == [0, 5])
            #expect(said.numbers("next") == [112, 44])
            #expect(
                said.values("memmap") == [
                    "0x0000000000000000+0x0000000000090000:1", "0x0000000000090000+0x0000000000070000:2",
                    "0x0000000000100000+0x0000000003f00000:1", "0x00000000efff0000+0x0000000000010000:2",
                ])
            #expect(said.numbers("consdev") == [0x800, 115200, 0x3F8, 0, 0, 0, 0, 0])
            // An ELF file of symbols behind the kernel, up to what it is told is the end.
            #expect(said.numbers("elf") == [0x464C_457F] && said.numbers("class") == [is64 ? 2 : 1])
            #expect(said.numbers("phoff") == [0] && said.numbers("phnum") == [0] && said.numbers("phentsize") == [0])
            #expect(said.numbers("shoff") == [is64 ? 64 : 52])
            #expect(said.numbers("section") == [2, 3, 3] && said.numbers("allocated") == [1, 1, 1])
            #expect(said.numbers("symbol") == [1])
            #expect(said.numbers("end") == [1])
            #expect(said.lines.last == "end")
        }

        @Test(arguments: ["amd64", "i386"])
        func `random data are other ones at each start`(kernel: String) throws {
            let seeds = try (0..<2).map { _ in try Self.run(kernel).values("random").first ?? "" }
            #expect(seeds[0] != seeds[1])
            #expect(seeds.allSatisfy { $0.count == 128 && Set($0).count > 8 })
        }
    }
}
