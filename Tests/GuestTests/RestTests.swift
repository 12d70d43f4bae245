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

        @Test func `a guest that halts for good wakes nobody and costs less than 6 MB`() throws {
            let guest = try GuestProcess(
                ["run", "-m", "16M", "-b", "\(Paths.guests)/control/kernel", "--cmdline", "halt"] + Paths.engine)
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
            #expect(try sleeps() == before)
            let memory = try File.text("/proc/\(guest.pid)/smaps_rollup")
            let dirty = memory.split(separator: "\n").first { $0.hasPrefix("Private_Dirty:") }
            let kilobytes = dirty?.split(separator: " ").dropFirst().first.flatMap { Int($0) }
            #expect(try #require(kilobytes) < 6 << 10)
            guest.signal(SIGTERM)
            #expect(try guest.status() == 128 + SIGTERM)
        }

        @Test func `the guest's clock is the host's after work and rest`() throws {
            let guest = try GuestProcess.atShell()
            for load in ["true", "guest-test indirect_calls mmap_munmap fork_wait >/dev/null; sleep 1; seq 1 50000 | md5sum; sleep 1"] {
                _ = try guest.shell(load)
                let before = Clock.seconds(CLOCK_REALTIME)
                let printed = try guest.shell("guest-test --clock")
                let after = Clock.seconds(CLOCK_REALTIME)
                let time = printed.split(separator: "\n").compactMap { Double($0) }.last ?? 0
                #expect(time > before - 0.05 && time < after + 0.05, "\(time) is not within \(before) and \(after)")
            }
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }
    }
}
