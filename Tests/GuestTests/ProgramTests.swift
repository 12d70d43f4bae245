import Testing

extension GuestTests {
    /// What runs inside: the guest test program, and the kernel under other command lines.
    @Suite struct Programs {
        /// With the usual CPU, and with all that the host's has.
        @Test(arguments: [("test", []), ("test32", []), ("test", ["--cpu", "host"])])
        func `the guest test program passes`(program: String, cpu: [String]) throws {
            let guest = try GuestProcess(boot("quiet vmd.run=\(program)") + cpu, input: .nothing)
            #expect(try guest.status(within: 5 * Paths.patience) == 0)
            let lines = guest.text.split(separator: "\n")
            for line in lines where line.hasPrefix("FAIL ") { Issue.record("\(line)") }
            // Not run is not passed: only what this host lacks may be left out.
            let features = try File.text("/proc/cpuinfo").split(separator: "\n").first { $0.hasPrefix("flags") }
            let host = Set(features?.split(separator: " ") ?? [])
            for line in lines where line.hasPrefix("skip ") {
                let feature = line.split(separator: " ").last.map { $0.replacing(".", with: "_") } ?? ""
                // The usual CPU shows no AVX-512.
                let isHidden = cpu.isEmpty && feature.hasPrefix("avx512")
                if host.contains(Substring(feature)) && !isHidden { Issue.record("\(line), but the host has") }
            }
            let last = lines.last { $0.hasPrefix("guest-test: ") } ?? "guest-test printed no last line"
            #expect(last.hasSuffix(" passed, 0 failed"))
        }

        @Test(arguments: ["nokaslr", "nopti", "pti=on", "mitigations=off", "mitigations=auto nokaslr nopti", "nosmp noapic", "nox2apic", "nolapic", "nolapic_timer no-kvmclock", "lapic=notscdeadline nox2apic"])
        func `the kernel boots with`(words: String) throws {
            let guest = try GuestProcess(boot("\(words) vmd.run=demo"), input: .nothing)
            #expect(try guest.status() == 0)
            let hasShown = guest.text.contains("kernel:   Linux 6")
            #expect(hasShown)
            // Bound first: a failure would print all of the output.
            let traces = guest.text.split(separator: "\n").filter { $0.contains("Call Trace") || $0.contains("WARNING:") }
            #expect(traces.isEmpty)
        }

        @Test(arguments: ["128M", "2G", "5G"])
        func `the guest has the memory that it was given`(size: String) throws {
            let guest = try GuestProcess(boot("vmd.run=demo", memory: size), input: .nothing)
            #expect(try guest.status() == 0)
            let line = guest.text.split(separator: "\n").last { $0.hasPrefix("memory:") } ?? ""
            let kilobytes = line.split(separator: " ").dropFirst().first.flatMap { Double($0) } ?? 0
            let given = (Double(size.dropLast()) ?? 0) * (size.hasSuffix("G") ? 1_048_576 : 1024)
            #expect(kilobytes > given * 0.8 - 40_000 && kilobytes < given)
        }
    }
}
