import Testing

extension GuestProcess {
    /// A guest at its shell on the engine that has local APICs.
    static func onTranslator(_ words: String) throws -> GuestProcess {
        let guest = try GuestProcess(
            ["run", "-m", "512M", "-b", Paths.kernel, "--initrd", Paths.initrd, "--cmdline", "console=ttyS0 \(words)"]
                + ["--engine", "translator"])
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

        @Test func `Linux uses x2APIC, the I/O APIC and deadlines, and rests without ticks`() throws {
            let guest = try GuestProcess.onTranslator("quiet")
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
