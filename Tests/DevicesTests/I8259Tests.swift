import Devices
import Synchronization
import Testing
import VMM

@Suite("8259A pair") struct I8259Tests {
    /// Initialised as Linux and a BIOS do it: vectors 0x30 and 0x38, nothing masked.
    private func makePair(icw4: UInt8 = 1, slaveICW4: UInt8 = 1) -> (pair: I8259Pair, bus: PortBus) {
        let pair = I8259Pair()
        let bus = PortBus(pair.claims)
        for (port, words) in [(0x20 as UInt16, [0x11, 0x30, 0x04, icw4]), (0xA0, [0x11, 0x38, 0x02, slaveICW4])] {
            bus.write(port, .byte, UInt32(words[0]))
            for word in words.dropFirst() { bus.write(port + 1, .byte, UInt32(word)) }
        }
        return (pair, bus)
    }

    @Test func `chip that was never initialised asserts nothing`() {
        let pair = I8259Pair()
        for line in 0..<16 as Range<UInt8> { pair.setLine(line, true) }
        #expect(!pair.isPending)
    }

    @Test(arguments: (0..<16 as Range<UInt8>).filter { $0 != 2 })
    func `each line gives its vector`(line: UInt8) {
        let (pair, _) = makePair()
        pair.setLine(line, true)
        #expect(pair.isPending)
        #expect(pair.acknowledge() == 0x30 + line)
        #expect(!pair.isPending)
    }

    @Test func `edge is one request however long the line stays up`() {
        let (pair, bus) = makePair()
        pair.setLine(4, true)
        _ = pair.acknowledge()
        bus.write(0x20, .byte, 0x20)
        #expect(!pair.isPending)
        pair.setLine(4, true)
        #expect(!pair.isPending)
        pair.setLine(4, false)
        pair.setLine(4, true)
        #expect(pair.isPending)
    }

    @Test func `pulse is kept until it is acknowledged`() {
        let (pair, _) = makePair()
        InterruptLine(pair, 0).pulse()
        #expect(pair.acknowledge() == 0x30)
    }

    @Test func `level requests again while the line is up`() {
        let (pair, bus) = makePair()
        bus.write(0x4D1, .byte, 0x02)
        pair.setLine(9, true)
        #expect(pair.acknowledge() == 0x39)
        bus.write(0xA0, .byte, 0x20)
        bus.write(0x20, .byte, 0x20)
        #expect(pair.isPending)
        pair.setLine(9, false)
        #expect(!pair.isPending)
    }

    @Test func `interrupt in service blocks its own and lower priorities only`() {
        let (pair, bus) = makePair()
        pair.setLine(4, true)
        _ = pair.acknowledge()
        pair.setLine(5, true)
        #expect(!pair.isPending)
        pair.setLine(1, true)
        #expect(pair.acknowledge() == 0x31)
        bus.write(0x20, .byte, 0x20)
        #expect(!pair.isPending)
        bus.write(0x20, .byte, 0x20)
        #expect(pair.acknowledge() == 0x35)
    }

    @Test func `slave comes between IRQ 1 and IRQ 3`() {
        let (pair, bus) = makePair()
        for line in [3, 15, 8, 1] as [UInt8] { pair.setLine(line, true) }
        var order: [UInt8] = []
        while pair.isPending, order.count < 10 {
            let vector = pair.acknowledge()
            order.append(vector - 0x30)
            if vector >= 0x38 { bus.write(0xA0, .byte, 0x20) }
            bus.write(0x20, .byte, 0x20)
        }
        #expect(order == [1, 8, 15, 3])
    }

    @Test func `mask holds a request back and keeps it`() {
        let (pair, bus) = makePair()
        bus.write(0x21, .byte, 0x10)
        pair.setLine(4, true)
        #expect(!pair.isPending)
        #expect(bus.read(0x20, .byte) == 0x10)
        #expect(bus.read(0x21, .byte) == 0x10)
        bus.write(0x21, .byte, 0)
        #expect(pair.isPending)
    }

    @Test func `OCW3 selects IRR and ISR`() {
        let (pair, bus) = makePair()
        pair.setLine(3, true)
        bus.write(0x20, .byte, 0x0A)
        #expect(bus.read(0x20, .byte) == 0x08)
        _ = pair.acknowledge()
        #expect(bus.read(0x20, .byte) == 0)
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 0x08)
    }

    @Test func `withdrawn request gives the spurious vector and nothing in service`() {
        let (pair, bus) = makePair()
        bus.write(0x4D0, .byte, 0x20)
        pair.setLine(5, true)
        pair.setLine(5, false)
        #expect(pair.acknowledge() == 0x37)
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 0)
    }

    @Test func `slave without a request answers its own spurious vector`() {
        var chip = I8259(slaves: 0, levelCapable: 0xDE)
        for (odd, value) in [(false, 0x11), (true, 0x70), (true, 2), (true, 1)] as [(Bool, UInt8)] {
            chip.write(odd: odd, value)
        }
        let number = chip.accept()
        #expect(chip.vector(of: number) == 0x77)
        #expect(chip.isr == 0)
    }

    @Test func `request withdrawn by the slave is withdrawn at the master`() {
        let (pair, bus) = makePair()
        pair.setLine(12, true)
        #expect(pair.isPending)
        bus.write(0xA1, .byte, 0x10)
        #expect(!pair.isPending)
        bus.write(0xA1, .byte, 0)
        #expect(pair.acknowledge() == 0x3C)
    }

    @Test func `specific EOI ends the interrupt it names`() {
        let (pair, bus) = makePair()
        pair.setLine(6, true)
        _ = pair.acknowledge()
        pair.setLine(1, true)
        _ = pair.acknowledge()
        bus.write(0x20, .byte, 0x66)
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 0x02)
    }

    @Test func `rotation on EOI makes the ended input the last`() {
        let (pair, bus) = makePair()
        pair.setLine(3, true)
        _ = pair.acknowledge()
        bus.write(0x20, .byte, 0xA0)
        pair.setLine(3, false)
        pair.setLine(3, true)
        pair.setLine(7, true)
        #expect(pair.acknowledge() == 0x37)
    }

    @Test func `set priority makes the next input the first`() {
        let (pair, bus) = makePair()
        bus.write(0x20, .byte, 0xC0 | 4)
        pair.setLine(0, true)
        pair.setLine(5, true)
        #expect(pair.acknowledge() == 0x35)
        bus.write(0x20, .byte, 0xE0 | 5)
        pair.setLine(6, true)
        #expect(pair.acknowledge() == 0x36)
    }

    @Test func `automatic EOI leaves nothing in service`() {
        let (pair, bus) = makePair(icw4: 3)
        pair.setLine(4, true)
        _ = pair.acknowledge()
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 0)
        pair.setLine(5, true)
        #expect(pair.acknowledge() == 0x35)
    }

    @Test func `two slave requests with automatic EOI both arrive`() {
        let (pair, _) = makePair(icw4: 3, slaveICW4: 3)
        pair.setLine(9, true)
        pair.setLine(10, true)
        #expect(pair.acknowledge() == 0x39)
        #expect(pair.isPending)
        #expect(pair.acknowledge() == 0x3A)
        #expect(!pair.isPending)
    }

    @Test func `rotation in automatic EOI goes round`() {
        let (pair, bus) = makePair(icw4: 3)
        bus.write(0x20, .byte, 0x80)
        pair.setLine(3, true)
        _ = pair.acknowledge()
        pair.setLine(3, false)
        pair.setLine(3, true)
        pair.setLine(6, true)
        #expect(pair.acknowledge() == 0x36)
    }

    @Test func `special mask mode lets lower priorities through`() {
        let (pair, bus) = makePair()
        pair.setLine(1, true)
        _ = pair.acknowledge()
        pair.setLine(6, true)
        #expect(!pair.isPending)
        bus.write(0x21, .byte, 0x02)
        bus.write(0x20, .byte, 0x68)
        #expect(pair.acknowledge() == 0x36)
        // A non-specific EOI leaves the masked one alone.
        bus.write(0x20, .byte, 0x20)
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 0x02)
        bus.write(0x20, .byte, 0x48)
    }

    @Test func `special fully nested mode lets the slave interrupt itself`() {
        let (pair, _) = makePair(icw4: 0x11)
        pair.setLine(12, true)
        _ = pair.acknowledge()
        pair.setLine(9, true)
        #expect(pair.acknowledge() == 0x39)
    }

    @Test func `without it the slave waits for the master's EOI`() {
        let (pair, bus) = makePair()
        pair.setLine(12, true)
        _ = pair.acknowledge()
        pair.setLine(9, true)
        #expect(!pair.isPending)
        bus.write(0x20, .byte, 0x20)
        #expect(pair.acknowledge() == 0x39)
    }

    @Test func `poll acknowledges and names the input`() {
        let (pair, bus) = makePair()
        bus.write(0x20, .byte, 0x0C)
        #expect(bus.read(0x20, .byte) & 0x80 == 0)
        pair.setLine(5, true)
        bus.write(0x20, .byte, 0x0C)
        #expect(bus.read(0x20, .byte) == 0x85)
        #expect(!pair.isPending)
        #expect(bus.read(0x21, .byte) == 0)
    }

    @Test func `initialisation clears masks, service and edges, and wants a new edge`() {
        let (pair, bus) = makePair()
        pair.setLine(1, true)
        _ = pair.acknowledge()
        pair.setLine(3, true)
        bus.write(0x21, .byte, 0xFF)
        for (port, value) in [(0x20, 0x11), (0x21, 0x40), (0x21, 4)] as [(UInt16, UInt32)] {
            bus.write(port, .byte, value)
        }
        #expect(!pair.isPending)
        bus.write(0x21, .byte, 1)
        #expect(bus.read(0x21, .byte) == 0)
        #expect(!pair.isPending)
        pair.setLine(3, false)
        pair.setLine(3, true)
        #expect(pair.acknowledge() == 0x43)
    }

    @Test func `ICW1 without ICW4 and with a single chip takes two words`() {
        let (pair, bus) = makePair(icw4: 3)
        bus.write(0x20, .byte, 0x12)
        bus.write(0x21, .byte, 0x50)
        bus.write(0x21, .byte, 0xFE)
        #expect(bus.read(0x21, .byte) == 0xFE)
        pair.setLine(0, true)
        #expect(pair.acknowledge() == 0x50)
        bus.write(0x20, .byte, 0x0B)
        #expect(bus.read(0x20, .byte) == 1)
    }

    @Test func `edge and level control keeps the bits that exist`() {
        let (_, bus) = makePair()
        bus.write(0x4D0, .word, 0xFFFF)
        #expect(bus.read(0x4D0, .word) == 0xDEF8)
    }

    @Test func `rise of INTR is announced once`() {
        let (pair, bus) = makePair()
        let calls = Calls()
        pair.onInterruptRequest { calls.add() }
        pair.setLine(4, true)
        pair.setLine(3, true)
        #expect(calls.count == 1)
        _ = pair.acknowledge()
        bus.write(0x20, .byte, 0x20)
        #expect(calls.count == 2)
    }

    @Test func `INTR that is up already is announced to a new listener`() {
        let (pair, _) = makePair()
        pair.setLine(4, true)
        let calls = Calls()
        pair.onInterruptRequest { calls.add() }
        #expect(calls.count == 1)
    }

    @Test func `waiting means requested, not masked and not acknowledged`() {
        let (pair, bus) = makePair()
        #expect(!pair.isWaiting(0))
        pair.setLine(0, true)
        #expect(pair.isWaiting(0))
        bus.write(0x21, .byte, 1)
        #expect(!pair.isWaiting(0))
        bus.write(0x21, .byte, 0)
        _ = pair.acknowledge()
        #expect(!pair.isWaiting(0))
    }

    @Test func `restored state raises INTR again`() {
        let (pair, _) = makePair()
        pair.setLine(4, true)
        let saved = pair.save()
        let other = I8259Pair()
        other.restore(saved)
        #expect(other.isPending)
        #expect(other.acknowledge() == 0x34)
    }

    private final class Calls: Sendable {
        private let value = Atomic(0)
        func add() { value.add(1, ordering: .relaxed) }
        var count: Int { value.load(ordering: .relaxed) }
    }
}
