import Glibc
import Testing

/// Whether Linux runs on KVM here: a page-table-based KVM does not know all its instructions.
private let hasHardwareKVM: Bool = {
    guard access("/dev/kvm", R_OK | W_OK) == 0, let text = try? File.text("/proc/cpuinfo") else { return false }
    return text.split(whereSeparator: \.isWhitespace).contains { $0 == "vmx" || $0 == "svm" }
}()

extension GuestProcess {
    /// A guest at its shell.
    static func onEngine(_ engine: String, _ words: String) throws -> GuestProcess {
        let guest = try GuestProcess(
            ["run", "-m", "512M", "-b", Paths.kernel, "--initrd", Paths.initrd, "--cmdline", "console=ttyS0 \(words)"]
                + ["--engine", engine])
        _ = try guest.wait(for: prompt)
        return guest
    }
}

extension GuestTests {
    /// Interrupt controllers as Linux finds and uses them.
    @Suite struct Interrupts {
        /// The numbers in a row of /proc/interrupts.
        private func count(_ row: String, _ text: String) -> Int {
            let line = text.split(separator: "\n").first { $0.drop { $0 == " " }.hasPrefix("\(row):") }
            return line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
        }

        @Test(arguments: ["translator", "kvm"])
        func `Linux uses x2APIC, the I/O APIC and deadlines, and rests without ticks`(engine: String) throws {
            if engine == "kvm" && !hasHardwareKVM { try Test.cancel("there is no KVM with hardware under it here") }
            let guest = try GuestProcess.onEngine(engine, "quiet")
            let messages = try guest.shell("dmesg | grep -iE 'apic|deadline'")
            for line in ["x2apic enabled", "IOAPIC[0]: apic_id 1, version 32, address 0xfec00000, GSI 0-23", "TSC deadline timer available"] {
                let hasLine = messages.contains(line)
                #expect(hasLine, "\(line)")
            }
            let before = try guest.shell("cat /proc/interrupts")
            #expect(before.contains("IO-APIC   4-edge      ttyS0"))
            #expect(before.contains("IO-APIC   9-fasteoi   acpi"))
            // The interval timer ticks only until the local APIC's is there.
            _ = try guest.shell("sleep 4")
            let after = try guest.shell("cat /proc/interrupts")
            // With ticks it were 1000.
            let ticks = count("LOC", after) - count("LOC", before)
            #expect(ticks > 0 && ticks < 300)
            #expect(count("ERR", after) == 0 && count("SPU", after) == 0 && count("MIS", after) == 0)
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }
    }
}
