import Testing

extension GuestTests {
    /// PCI as Linux finds it.
    @Suite struct PCI {
        @Test func `Linux takes base addresses and interrupt lines as they are`() throws {
            let guest = try GuestProcess.atShell()
            let messages = try guest.shell("dmesg | grep -i pci")
            #expect(messages.contains("pci 0000:00:02.0: [0b5d:0777] type 00 class 0x078000"))
            #expect(messages.contains("root bus resource [io  0x1000-0xffff window]"))
            #expect(!messages.contains("can't claim"))
            #expect(!messages.contains("no compatible bridge window"))
            #expect(try guest.shell("cat /proc/ioports").contains("2000-2fff : 0000:00:02.0"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }

        /// Linux looks the interrupt up in _PRT only when somebody uses the function.
        @Test(arguments: [("quiet", "17"), ("quiet noapic", "5")])
        func `the way of an interrupt is by the I/O APIC's pin or by the pair's line`(words: String, number: String) throws {
            let guest = try GuestProcess.onEngine("translator", words)
            let file = "/sys/bus/pci/devices/0000:00:02.0/irq"
            #expect(try guest.shell("cat \(file)").split(separator: "\n").contains("5"))
            let after = try guest.shell("echo 1 >/sys/bus/pci/devices/0000:00:02.0/enable; cat \(file)")
            #expect(after.split(separator: "\n").contains { $0 == number })
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }
    }
}
