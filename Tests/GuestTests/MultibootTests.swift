import Glibc
import Testing

extension GuestTests {
    /// Multiboot kernels: the one of `Guests/multiboot`, which prints all that it was given, in its three shapes.
    @Suite struct Multiboot {
        private static func run(
            _ shape: String, _ commandLine: String, _ more: [String] = []
        ) throws -> GuestProcess {
            try GuestProcess(
                ["run", "-m", "64M", "-b", kernel(shape), "--cmdline", commandLine, "--debug-exit", "0xf4"] + more
                    + Paths.engine, input: .nothing)
        }
        private static func kernel(_ shape: String) -> String { "\(Paths.guests)/multiboot/\(shape)" }

        @Test(arguments: ["elf32", "elf64", "flat"])
        func `every field is as the specification says`(shape: String) throws {
            let scratch = try Scratch()
            let ramdisk = try scratch.file("ramdisk", Array("abc".utf8))
            let module = try scratch.file("module", [UInt8](repeating: 1, count: 4097))
            let guest = try Self.run(
                shape, "hello exit=21 spin", ["--module", "\(module),first, second", "--initrd", ramdisk])
            #expect(try guest.status(within: 20) == 43)
            let said = KernelReport(guest.text)
            func values(_ name: String) -> [String] { said.values(name) }
            func numbers(_ name: String) -> [UInt32?] { said.numbers(name) }

            // The state of the machine: magic number, interrupts and paging off, flat segments, A20 open.
            #expect(numbers("eax") == [0x2BAD_B002])
            #expect(numbers("eflags") == [0])
            #expect(numbers("cr0") == [1])
            #expect(numbers("rights") == [0xC09A00, 0xC09200, 0xC09200, 0xC09200, 0xC09200, 0xC09200])
            #expect(numbers("limit") == Array(repeating: .max, count: 6))
            #expect(numbers("a20") == [1])
            #expect(numbers("bss") == [0])
            #expect(numbers("data") == [0x600D_DA7A])
            // Memory, command line, modules, memory map, loader.
            #expect(numbers("flags") == [0x24D])
            #expect(numbers("mem_lower") == [576])
            #expect(numbers("mem_upper") == [63 << 10])
            #expect(values("cmdline") == ["\(Self.kernel(shape)) hello exit=21 spin"])
            #expect(numbers("mods_count") == [2])
            #expect(values("mod_string") == [ramdisk, "\(module) first, second"])
            #expect(numbers("mod_size") == [3, 4097])
            #expect(numbers("mod_start").allSatisfy { $0.map { $0 % 4096 == 0 && $0 > 0x20_0000 } ?? false })
            #expect(numbers("mod_sum") == [KernelReport.sum(Array("abc".utf8)), KernelReport.sum([UInt8](repeating: 1, count: 4097))])
            #expect(numbers("mod_reserved") == [0, 0])
            #expect(
                values("mmap") == [
                    "0x0000000000000000+0x0000000000090000:1", "0x0000000000090000+0x0000000000070000:2",
                    "0x0000000000100000+0x0000000003f00000:1", "0x00000000efff0000+0x0000000000010000:2",
                ])
            #expect(values("boot_loader_name") == ["vmd"])
            for absent in ["boot_device", "drives_length", "drives_addr", "config_table", "apm_table"] {
                #expect(numbers(absent) == [0], "\(absent)")
            }
            #expect(numbers("syms") + numbers("vbe") + numbers("framebuffer") == Array(repeating: 0, count: 15))
            // The firmware configuration ports.
            #expect(values("fw_signature") == ["51454d550000"])
            #expect(values("fw_interface") == ["03000000"])
            #expect(values("fw_uuid") == [String(repeating: "0", count: 32)])
            #expect(values("fw_memory") == ["0000000400000000"])
            #expect(values("fw_processors") == ["0100"])
            #expect(values("fw_most") == ["0100"])
            #expect(values("fw_files") == ["00000000"])
            #expect(values("fw_nothing") == ["00000000"])
            #expect(said.lines.last == "end")
        }

        @Test(arguments: [
            ("exit=0", 1), ("exit=127", 255), ("exit=128", 1), ("exit16=259", 7), ("exit32=65541", 11), ("exit=3 spin", 7),
        ] as [(String, CInt)])
        func `kernel ends with its status, at any width`(words: String, status: CInt) throws {
            let guest = try Self.run("elf32", words)
            #expect(try guest.status(within: 20) == status)
            // All that it had printed is there, and nothing was said about it.
            let hasEnd = guest.text.hasSuffix("end\n")
            #expect(hasEnd)
            #expect(guest.errorText.isEmpty)
        }

        @Test func `kernel that asks for no status halts for good`() throws {
            let guest = try Self.run("flat", "")
            #expect(try guest.status(within: 20) == 1)
            #expect(guest.errorText.contains("halted for good"))
        }

        @Test func `port may be given in decimal`() throws {
            let guest = try GuestProcess(
                ["run", "-b", Self.kernel("elf32"), "--cmdline", "exit=4", "--debug-exit", "244"] + Paths.engine,
                input: .nothing)
            #expect(try guest.status(within: 20) == 9)
        }
    }
}
