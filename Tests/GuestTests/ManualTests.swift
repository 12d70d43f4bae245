import Glibc
import Testing

extension GuestTests {
    /// The commands of vmctl(8)'s EXAMPLES, in their order, with a daemon and kernels under the names that the manual
    /// uses.
    @Suite(.enabled(if: access(Paths.vmd, X_OK) == 0, "no \(Paths.vmd): make build")) struct Manual {
        private let scratch: Scratch
        private let daemon: GuestProcess

        init() throws {
            scratch = try Scratch()
            let configuration = try scratch.file("vm.conf", Array("vm \"other\" {\n\tdisable\n\tboot \"vmlinuz\"\n\tdisk \"my.qcow2\"\n}\n".utf8))
            try scratch.link("vmlinuz", to: Paths.kernel)
            try scratch.link("initramfs.cpio", to: Paths.initrd)
            try scratch.link("test.elf", to: Paths.multiboot)
            daemon = try GuestProcess(
                ["-d", "-f", configuration, "-s", scratch.path + "/vmd.sock"], input: .nothing, program: Paths.vmd)
            let deadline = Clock.seconds() + Paths.patience
            while try vmctl("status -j").status() != 0 {
                guard Clock.seconds() < deadline else { throw GuestFailure(description: "vmd: \(daemon.errorText)") }
                usleep(50_000)
            }
        }

        private func vmctl(_ words: String, input: GuestProcess.Input = .nothing) throws -> GuestProcess {
            let line = "cd \(scratch.path) && VMD_SOCKET=\(scratch.path)/vmd.sock exec \(Paths.vmctl) \(words)"
            return try GuestProcess(["-c", line], input: input, program: "/bin/sh")
        }

        @Test func `examples do what the manual says`() throws {
            let manual = String(decoding: try File.bytes(Paths.root + "man/vmctl.8"), as: UTF8.self)
            let examples = manual.split(separator: "\n").filter { $0.hasPrefix(".Dl $ vmctl ") }
            #expect(examples.count >= 8)
            for example in examples {
                // The test kernel's own word: it ends with the status that is asked for.
                let words = String(example.dropFirst(".Dl $ vmctl ".count)).replacing("--cmdline smp", with: "--cmdline exit=4")
                let process = try vmctl(words, input: .pipe)
                if words.contains("vmlinuz"), words.hasPrefix("run") {
                    _ = try process.wait(for: GuestProcess.prompt)
                    process.send("poweroff -f\n")
                } else if words.hasPrefix("console") {
                    // It goes on until it is left; the guest that it shows is the one that was started.
                    _ = try process.wait(for: GuestProcess.prompt)
                    process.signal(SIGTERM)
                    #expect(try process.status() == 128 + SIGTERM, "\(words)")
                    continue
                }
                process.endInput()
                #expect(try process.status() == (words.contains("exit=4") ? 9 : 0), "\(words): \(process.errorText)")
            }
            let end = try vmctl("status -jr")
            #expect(try end.status() == 0)
            #expect(end.text == "[]\n")
            daemon.signal(SIGTERM)
            #expect(try daemon.status() == 0)
        }

        @Test func `vmd's examples do what the manual says`() throws {
            let folder = try Scratch()
            _ = try folder.file("vm.conf", Array("kernel = \"vmlinuz\"\nvm \"other\" {\n\tdisable\n\tboot $kernel\n}\n".utf8))
            try folder.link("vmlinuz", to: Paths.kernel)
            let socket = folder.path + "/test.sock"
            let manual = String(decoding: try File.bytes(Paths.root + "man/vmd.8"), as: UTF8.self)
            let examples = manual.split(separator: "\n").filter { $0.hasPrefix(".Dl $ ") }
            #expect(examples.count >= 4)
            defer { for pid in Self.daemons(on: socket) { kill(pid, SIGTERM) } }
            for example in examples {
                // The daemon that goes to the background is found again by its socket's whole path.
                let words = example.dropFirst(".Dl $ ".count).replacing("test.sock", with: socket)
                    .replacing("vmctl ", with: Paths.vmctl + " ").replacing("vmd -", with: Paths.vmd + " -")
                let process = try GuestProcess(["-c", "cd \(folder.path) && exec \(words)"], input: .nothing, program: "/bin/sh")
                #expect(try process.status() == 0, "\(words): \(process.errorText)")
            }
            #expect(Self.daemons(on: socket).count == 1)
        }

        /// Daemons that were started with that socket.
        private static func daemons(on socket: String) -> [pid_t] {
            File.paths("/proc/[0-9]*/cmdline").compactMap { path in
                guard let text = try? File.bytes(path), String(decoding: text, as: UTF8.self).contains("-s\0" + socket) else { return nil }
                return path.split(separator: "/").dropFirst().first.flatMap { pid_t($0) }
            }
        }
    }
}
