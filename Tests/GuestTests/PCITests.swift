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
            #expect(try guest.shell("cat /sys/bus/pci/devices/0000:00:02.0/irq").contains("5"))
            // Linux looks the line up in _PRT only when somebody uses the function.
            let enabled = try guest.shell("echo 1 >/sys/bus/pci/devices/0000:00:02.0/enable && dmesg | tail -n 1")
            #expect(enabled.contains("PCI: setting IRQ 5 as level-triggered"))
            guest.send("poweroff -f\n")
            #expect(try guest.status() == 0)
        }
    }
}
