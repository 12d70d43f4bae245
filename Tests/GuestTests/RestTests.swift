import Glibc
import Testing

extension GuestTests {
    /// A machine at rest, and its clock.
    @Suite struct Rest {
        @Test func `a guest at its prompt uses almost no processor time`() throws {
            let guest = try GuestProcess.atShell()
            try guest.idle(2)
            let before = try guest.processorTime()
            try guest.idle(4)
            let used = try guest.processorTime() - before
            #expect(used < 0.2, "5 % of one processor")
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        /// With KVM the kernel halts the CPU, and somebody looks a few times whether that is for good: two threads, each time.
        @Test(arguments: [("translator", 0), ("kvm", 8)])
        func `a guest that halts for good wakes nobody and costs less than 6 MB`(engine: String, looks: Int) throws {
            if engine == "kvm", access("/dev/kvm", R_OK | W_OK) != 0 { try Test.cancel("/dev/kvm does not open here") }
            let guest = try GuestProcess(
                ["run", "-m", "16M", "-b", "\(Paths.guests)/control/kernel", "--cmdline", "halt", "--engine", engine])
            _ = try guest.wait(for: "halted\n")
            // The console's thread gathers output for 2 ms.
            try guest.idle(0.5)
            /// How often its threads have gone to sleep.
            func sleeps() throws -> Int {
                try File.paths("/proc/\(guest.pid)/task/*/status").reduce(0) { sum, path in
                    let line = try File.text(path).split(separator: "\n").first { $0.hasPrefix("voluntary_ctxt_switches:") }
                    return sum + (line?.split(separator: "\t").last.flatMap { Int($0) } ?? 0)
                }
            }
            let before = try sleeps()
            try guest.idle(5)
            #expect(before > 0)
            #expect(try sleeps() - before <= looks)
            let memory = try File.text("/proc/\(guest.pid)/smaps_rollup")
            let dirty = memory.split(separator: "\n").first { $0.hasPrefix("Private_Dirty:") }
            let kilobytes = dirty?.split(separator: " ").dropFirst().first.flatMap { Int($0) }
            #expect(try #require(kilobytes) < 6 << 10)
            guest.signal(SIGTERM)
            #expect(try guest.status() == 128 + SIGTERM)
        }

        /// Where it begins depends on how many ticks a busy host makes Linux miss before its clock driver is there.
        @Test func `the guest's clock begins near the host's and goes with it through work and rest`() throws {
            let guest = try GuestProcess.atShell()
            /// How far it may be behind, at least and at most, as it was first seen.
            var first: ClosedRange<Double>?
            for load in ["true", "guest-test indirect_calls mmap_munmap fork_wait >/dev/null; sleep 1; seq 1 50000 | md5sum; sleep 1"] {
                _ = try guest.shell(load)
                let before = Clock.seconds(CLOCK_REALTIME)
                let printed = try guest.shell("guest-test --clock")
                let after = Clock.seconds(CLOCK_REALTIME)
                let time = printed.split(separator: "\n").compactMap { Double($0) }.last ?? 0
                let behind = before - time...max(before, after) - time
                #expect(behind.overlaps(-0.05...2), "behind by \(behind)")
                if let first { #expect(behind.overlaps(first.lowerBound - 0.05...first.upperBound + 0.05), "\(behind) after \(first)") }
                first = behind
            }
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }
    }
}
