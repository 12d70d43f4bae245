import Devices
import Glibc
import KVMEngine
import Linux
import Synchronization
import Testing
import VMM

/// Interrupts as programs find them, on both engines alike: the translator's CPUs have our local APIC, KVM's have the kernel's.
@Suite("Interrupts on both engines", .serialized, .timeLimit(.minutes(1))) struct EngineInterruptTests {
    @Test(arguments: TestedEngine.allCases)
    func `one-shot timer fires once, after as many ticks of the crystal`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        guest.setHandler(0x40)
        let before = TimeStampCounter.now()
        let said = try guest.run {
            $0.enterX2APIC()
            $0.wrmsr(0x83E, 0xB)
            $0.wrmsr(0x832, 0x40)
            $0.wrmsr(0x838, CPUPolicy.crystalHz / 200)
            $0.raw(0xFB, 0xF4)
            $0.rdmsr(0x839)
            $0.sayEAX()
            $0.wait()
            $0.end()
        }
        #expect(said == [0x40, 0])
        let frequency = TimeStampCounter.frequency()
        if try engine.make().features.countsCrystal { #expect(TimeStampCounter.now() - before >= frequency / 200) }
    }

    @Test(arguments: TestedEngine.allCases)
    func `periodic timer goes on`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        guest.setHandler(0x41)
        let said = try guest.run(until: 3) {
            $0.enterX2APIC()
            $0.wrmsr(0x83E, 0xB)
            $0.wrmsr(0x832, 1 << 17 | 0x41)
            $0.wrmsr(0x838, CPUPolicy.crystalHz / 1000)
            $0.raw(0xFB)
            $0.sleep()
        }
        #expect(said == [0x41, 0x41, 0x41])
    }

    @Test(arguments: TestedEngine.allCases)
    func `deadline of the time-stamp counter interrupts and is gone`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        try #require(guest.policy.features.contains(.tscDeadline))
        guest.setHandler(0x42)
        let said = try guest.run {
            $0.enterX2APIC()
            $0.wrmsr(0x832, 2 << 17 | 0x42)
            // rdtsc; shl $32, %rdx; or %rdx, %rax; add $5000000, %rax; mov %rax, %rdx; shr $32, %rdx; mov $0x6e0, %ecx; wrmsr
            $0.raw(0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0x48, 0x05, 0x40, 0x4B, 0x4C, 0x00)
            $0.raw(0x48, 0x89, 0xC2, 0x48, 0xC1, 0xEA, 0x20, 0xB9, 0xE0, 0x06, 0x00, 0x00, 0x0F, 0x30)
            $0.raw(0xFB, 0xF4)
            $0.rdmsr(MSRIndex.tscDeadline)
            $0.sayEAX()
            $0.end()
        }
        #expect(said == [0x42, 0])
    }

    @Test(arguments: TestedEngine.allCases)
    func `device's message interrupts a CPU that runs and one that sleeps`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        guest.setHandler(0x43)
        guest.onAct { messages.deliver(address: 0xFEE0_0000, data: 0x43) }
        let said = try guest.runActing()
        #expect(said == [0x43, 0x99])
        try guest.start {
            $0.enterX2APIC()
            $0.raw(0xFB)
            $0.sleep()
        }
        var asleep: [UInt32] = []
        try withThread { isOver in
            while !isOver() {
                messages.deliver(address: 0xFEE0_0000, data: 0x43)
                usleep(2000)
            }
        } during: {
            asleep = try guest.goOn(until: 5)
        }
        #expect(asleep == Array(repeating: 0x43, count: 5))
    }

    @Test(arguments: TestedEngine.allCases)
    func `message that is none, or for nobody, is nothing`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        guest.setHandler(0x43)
        guest.onAct {
            messages.deliver(address: 0x1000, data: 0x43)
            messages.deliver(address: 0xFEE0_3000, data: 0x43)
            messages.deliver(address: 0xFEE0_0000, data: 0x8043)
            messages.deliver(address: .max, data: .max)
        }
        let said = try guest.runActing()
        #expect(said == [0x99])
    }

    @Test(arguments: TestedEngine.allCases)
    func `level comes again after its end until the device lets go`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let wire = guest.system.pciLine(slot: 2, 3)
        guest.setPin(17, IOAPIC.Entry.isLevel | 0x45)
        guest.setHandler(0x45, acts: true)
        let acts = Mutex(0)
        guest.onAct {
            // First the program's, then the handlers'.
            let count = acts.withLock {
                $0 += 1
                return $0
            }
            wire.set(count < 3)
        }
        let said = try guest.runActing()
        withKnownIssue("this KVM ends interrupts when they are taken", isIntermittent: true) {
            #expect(said == [0x45, 0x45, 0x99])
        } when: {
            engine.endsInterruptsEarly
        }
        #expect(said.filter { $0 == 0x45 }.count >= 2 && said.last == 0x99)
    }

    @Test(arguments: TestedEngine.allCases)
    func `messages and a level between reading and writing a state arrive once each, those of several threads too`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        let wire = guest.system.pciLine(slot: 2, 3)
        guest.setPin(17, IOAPIC.Entry.isLevel | 0x45)
        let vectors = [0x31, 0x43, 0x54, 0x99] as [UInt8]
        for vector in vectors { guest.setHandler(vector) }
        // The last.
        guest.setHandler(0x31) {
            $0.wrmsr(0x80B, 0)
            $0.end()
        }
        guest.setHandler(0x45, acts: true)
        guest.onAct { wire.set(false) }
        try guest.start {
            $0.enterX2APIC()
            $0.say(1)
            $0.raw(0xFB)
            $0.sleep()
        }
        #expect(try guest.goOn(until: 1) == [1])
        try guest.pause {
            let threads = try vectors.map { vector in
                try PosixThread("device") { for _ in 0..<20 { messages.deliver(address: 0xFEE0_0000, data: UInt32(vector)) } }
            }
            wire.set(true)
            for thread in threads { thread.join() }
        }
        let said = try guest.goOn()
        withKnownIssue("this KVM ends interrupts when they are taken", isIntermittent: true) {
            #expect(said == [0x99, 0x54, 0x45, 0x43, 0x31])
        } when: {
            engine.endsInterruptsEarly
        }
        #expect(said.filter { $0 != 0x45 } == [0x99, 0x54, 0x43, 0x31] && said.contains(0x45))
        // And what is sent later comes as ever.
        guest.onAct { messages.deliver(address: 0xFEE0_0000, data: 0x43) }
        let later = try guest.run {
            $0.enterX2APIC()
            $0.raw(0xFB)
            $0.act()
            $0.wait()
            $0.end()
        }
        #expect(later == [0x43])
    }

    @Test(arguments: TestedEngine.allCases)
    func `with suppressed broadcasts the I/O APIC hears of no end but by its own register`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let wire = guest.system.pciLine(slot: 2, 3)
        guest.setPin(17, IOAPIC.Entry.isLevel | 0x45)
        guest.setHandler(0x45)
        guest.onAct { wire.set(true) }
        let said = try guest.run {
            $0.enterX2APIC(spurious: 0x11FF)
            $0.raw(0xFB)
            $0.act()
            $0.wait()
            $0.say(0x98)
            $0.store(0xFEC0_0040, 0x45)
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
        #expect(said == [0x45, 0x98, 0x45, 0x99])
    }

    @Test(arguments: TestedEngine.allCases)
    func `edge at a pin of the I/O APIC interrupts once, and a masked pin's is lost`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let wire = guest.system.line(4)
        guest.setHandler(0x44)
        guest.onAct { wire.pulse() }
        let said = try guest.run {
            $0.enterX2APIC()
            $0.raw(0xFB)
            $0.act()
            // Select the low half of pin 4's entry, write it.
            $0.store(0xFEC0_0000, 0x18)
            $0.store(0xFEC0_0010, 0x44)
            $0.wait()
            $0.say(0x98)
            $0.act()
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
        #expect(said == [0x98, 0x44, 0x99])
    }

    @Test(arguments: TestedEngine.allCases)
    func `8259 pair's interrupts pass LINT0 while it is open`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let wire = guest.system.line(4)
        guest.openPair()
        // mov $0x20, %al; out %al, $0x20
        guest.setHandler(0x24) { $0.raw(0xB0, 0x20, 0xE6, 0x20) }
        guest.onAct { wire.pulse() }
        let said = try guest.run {
            $0.raw(0xFB)
            $0.act()
            $0.wait()
            $0.say(0x97)
            $0.store(0xFEE0_0350, 0x1_0700)
            $0.act()
            $0.wait()
            $0.say(0x98)
            $0.store(0xFEE0_0350, 0x700)
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
        #expect(said == [0x24, 0x97, 0x98, 0x24, 0x99])
    }

    @Test(arguments: TestedEngine.allCases)
    func `8259 pair wakes a CPU that sleeps, and one whose local APIC is off`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let wire = guest.system.line(4)
        guest.openPair()
        guest.setHandler(0x24) { $0.raw(0xB0, 0x20, 0xE6, 0x20) }
        for isOff in [false, true] {
            try guest.start {
                if isOff { $0.wrmsr(MSRIndex.apicBase, 0xFEE0_0100) }
                $0.raw(0xFB)
                $0.sleep()
            }
            var said: [UInt32] = []
            try withThread { isOver in
                while !isOver() {
                    wire.pulse()
                    usleep(2000)
                }
            } during: {
                said = try guest.goOn(until: 5)
            }
            #expect(said == Array(repeating: 0x24, count: 5))
            guest.system.reset()
            guest.openPair()
        }
    }

    /// An interrupt arrives while another is on its way, and kicks the CPU once more.
    @Test(arguments: TestedEngine.allCases)
    func `many interrupts of several lines and of messages all arrive in their time`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        let wires = [UInt8(4), 5, 7].map { guest.system.line($0) }
        guest.openPair()
        for vector in [0x24, 0x25, 0x27] as [UInt8] { guest.setHandler(vector) { $0.raw(0xB0, 0x20, 0xE6, 0x20) } }
        guest.setHandler(0x43)
        try guest.start {
            $0.enterX2APIC()
            $0.wrmsr(0x835, 0x700)
            $0.raw(0xFB)
            $0.sleep()
        }
        var said: Set<UInt32> = []
        try withThread { isOver in
            while !isOver() {
                for wire in wires { wire.pulse() }
                messages.deliver(address: 0xFEE0_0000, data: 0x43)
                sched_yield()
            }
        } during: {
            // The pair comes first: while its wires are pulsed faster than the CPU takes them, a message may wait.
            for _ in 0..<200 where said.count < 4 { said.formUnion(try guest.goOn(until: 1000)) }
        }
        #expect(said == [0x24, 0x25, 0x27, 0x43])
    }

    @Test(arguments: TestedEngine.allCases)
    func `CR8 keeps back what has no higher priority`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        guest.setHandler(0x45)
        guest.setHandler(0x65)
        guest.onAct {
            messages.deliver(address: 0xFEE0_0000, data: 0x45)
            messages.deliver(address: 0xFEE0_0000, data: 0x65)
        }
        let said = try guest.run {
            $0.enterX2APIC()
            $0.setCR8(5)
            $0.raw(0xFB)
            $0.act()
            $0.wait()
            $0.say(0x98)
            $0.rdmsr(0x808)
            $0.sayEAX()
            $0.setCR8(0)
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
        #expect(said == [0x65, 0x98, 0x50, 0x45, 0x99])
    }

    @Test(arguments: TestedEngine.allCases)
    func `lower interrupt waits for the end of a higher one`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let messages = try #require(guest.system.messages)
        guest.setHandler(0x45)
        // The handler lets interrupts in, and says when it has waited.
        guest.setHandler(0x65, acts: true) {
            $0.raw(0xFB)
            $0.wait()
            $0.say(0x66)
            $0.wrmsr(0x80B, 0)
        }
        guest.onAct { messages.deliver(address: 0xFEE0_0000, data: 0x45) }
        let said = try guest.run {
            $0.enterX2APIC()
            $0.raw(0xFB)
            $0.wrmsr(0x83F, 0x65)
            $0.wait()
            $0.say(0x99)
            $0.end()
        }
        withKnownIssue("this KVM ends interrupts when they are taken", isIntermittent: true) {
            #expect(said == [0x65, 0x66, 0x45, 0x99])
        } when: {
            engine.endsInterruptsEarly
        }
        #expect(said.contains(0x65) && said.contains(0x45))
    }

    @Test(arguments: TestedEngine.allCases)
    func `registers in memory say what firmware has left, after a reset too`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        let registers: [UInt32] = [0x20, 0x30, 0x80, 0xD0, 0xE0, 0xF0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3E0]
        func show(_ code: inout Code) {
            for register in registers {
                code.load(0xFEE0_0000 + register)
                code.sayEAX()
            }
            code.end()
        }
        let expected: [UInt32] = [
            0, 0x0105_0014, 0, 0, 0xFFFF_FFFF, 0x1FF, 0x1_0000, 0x1_0000, 0x1_0000, 0x700, 0x400, 0x1_0000, 0, 0,
        ]
        #expect(try guest.run(show) == expected)
        _ = try guest.run {
            $0.store(0xFEE0_0080, 0x50)
            $0.store(0xFEE0_0350, 0x1_0700)
            $0.store(0xFEE0_0320, 0x2_0041)
            $0.store(0xFEE0_03E0, 0xB)
            $0.store(0xFEE0_0380, 100_000)
            $0.enterX2APIC()
            $0.end()
        }
        guest.system.reset()
        #expect(try guest.run(show) == expected)
    }

    @Test(arguments: TestedEngine.allCases)
    func `CPUID shows the same local APIC, while it is on`(engine: TestedEngine) throws {
        let guest = try InterruptGuest(engine)
        // mov $1, %eax; cpuid; mov %ecx, %eax or mov %edx, %eax
        func leaf1(_ code: inout Code) {
            code.raw(0xB8, 1, 0, 0, 0, 0x0F, 0xA2, 0x89, 0xC8)
            code.sayEAX()
            code.raw(0xB8, 1, 0, 0, 0, 0x0F, 0xA2, 0x89, 0xD0)
            code.sayEAX()
        }
        let said = try guest.run {
            leaf1(&$0)
            $0.wrmsr(MSRIndex.apicBase, 0xFEE0_0100)
            leaf1(&$0)
            $0.end()
        }
        try #require(said.count == 4)
        #expect(said[0] >> 21 & 1 == 1 && said[0] >> 24 & 1 == 1 && said[1] >> 9 & 1 == 1)
        #expect(said[3] >> 9 & 1 == 0)
    }
}
