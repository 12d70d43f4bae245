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
