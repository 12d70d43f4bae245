import Devices
import Testing
import VMM

@Suite("16550A chip") struct UART16550Tests {
    /// As Linux leaves it: FIFOs on with trigger 8, DTR, RTS and OUT2.
    private func makeChip(ier: UInt8 = 0x01, fcr: UInt8 = 0x81) -> UART16550 {
        var chip = UART16550()
        _ = chip.write(.iir, fcr)
        _ = chip.write(.mcr, 0x0B)
        _ = chip.write(.ier, ier)
        return chip
    }

    @Test(
        arguments: [
            (.ier, 0x00), (.iir, 0x01), (.lcr, 0x00), (.mcr, 0x00), (.lsr, 0x60), (.msr, 0xB0), (.scr, 0x00),
        ] as [(UART16550.Register, UInt8)])
    func `register holds its reset value`(register: UART16550.Register, expected: UInt8) {
        var chip = UART16550()
        #expect(chip.read(register) == expected)
    }

    @Test(arguments: [(.ier, 0x0F), (.lcr, 0xFF), (.mcr, 0x1F), (.scr, 0xFF)] as [(UART16550.Register, UInt8)])
    func `register keeps the bits that exist`(register: UART16550.Register, expected: UInt8) {
        var chip = UART16550()
        _ = chip.write(register, 0xFF)
        #expect(chip.read(register) == expected)
    }

    @Test func `divisor latch hides data and interrupt enable`() {
        var chip = UART16550()
        _ = chip.write(.ier, 0x05)
        _ = chip.write(.lcr, 0x83)
        #expect(chip.write(.data, 0x34) == nil)
        #expect(chip.write(.ier, 0x12) == nil)
        #expect(chip.divisor == 0x1234)
        #expect(chip.read(.data) == 0x34)
        #expect(chip.read(.ier) == 0x12)
        _ = chip.write(.lcr, 0x03)
        #expect(chip.read(.ier) == 0x05)
    }

    @Test func `written byte is sent and the transmitter is empty again`() {
        var chip = UART16550()
        #expect(chip.write(.data, 0x41) == 0x41)
        #expect(chip.read(.lsr) == 0x60)
    }

    @Test func `byte received is shown, read and gone`() {
        var chip = makeChip(ier: 0, fcr: 0)
        chip.receive(0x41)
        #expect(chip.read(.lsr) == 0x61)
        #expect(chip.read(.data) == 0x41)
        #expect(chip.read(.lsr) == 0x60)
    }

    @Test func `FIFO keeps order over sixteen bytes`() {
        var chip = makeChip()
        for round in 0..<20 as Range<UInt8> {
            for byte in 0..<16 as Range<UInt8> { chip.receive(byte &+ round) }
            #expect(chip.room == 0)
            for byte in 0..<16 as Range<UInt8> { #expect(chip.read(.data) == byte &+ round) }
        }
    }

    @Test(arguments: [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)] as [(UInt8, Int)])
    func `trigger level turns character timeout into received data`(fcr: UInt8, level: Int) {
        var chip = makeChip(fcr: fcr)
        for count in 1...16 {
            chip.receive(0)
            #expect(chip.read(.iir) == (count >= level ? 0xC4 : 0xCC))
            #expect(chip.interruptPending)
        }
        for _ in 0..<16 { _ = chip.read(.data) }
        #expect(chip.read(.iir) == 0xC1)
        #expect(!chip.interruptPending)
    }

    @Test func `without FIFOs there is room for one byte and no timeout`() {
        var chip = makeChip(fcr: 0)
        #expect(chip.room == 1)
        chip.receive(0x41)
        #expect(chip.room == 0)
        #expect(chip.read(.iir) == 0x04)
    }

    @Test func `switching the FIFOs or clearing them empties them`() {
        var chip = makeChip()
        chip.receive(1)
        _ = chip.write(.iir, 0x83)
        #expect(chip.read(.lsr) == 0x60)
        chip.receive(1)
        _ = chip.write(.iir, 0)
        #expect(chip.read(.lsr) == 0x60)
        #expect(chip.read(.iir) & 0xC0 == 0)
    }

    @Test func `enabling the transmitter interrupt raises it each time`() {
        // What Linux's test for UARTs that forget this does.
        var chip = makeChip(ier: 0)
        for _ in 0..<2 {
            _ = chip.write(.ier, 0x02)
            #expect(chip.read(.iir) == 0xC2)
            #expect(chip.read(.iir) == 0xC1)
            _ = chip.write(.ier, 0)
        }
    }

    @Test func `sending raises the transmitter interrupt again`() {
        var chip = makeChip(ier: 0x02)
        _ = chip.read(.iir)
        #expect(!chip.interruptPending)
        #expect(chip.write(.data, 0x41) != nil)
        #expect(!chip.interruptPending)
        chip.finishSending()
        #expect(chip.interruptPending)
        #expect(chip.read(.iir) == 0xC2)
    }

    @Test func `interrupts are shown by priority`() {
        var chip = makeChip(ier: 0x0F)
        chip.setModemInputs([.cts])
        #expect(chip.receiveBreak() == true)
        chip.receive(1)
        #expect(chip.read(.iir) == 0xC6)
        _ = chip.read(.lsr)
        #expect(chip.read(.iir) == 0xCC)
        _ = chip.read(.data)
        _ = chip.read(.data)
        #expect(chip.read(.iir) == 0xC2)
        #expect(chip.read(.iir) == 0xC0)
        _ = chip.read(.msr)
        #expect(chip.read(.iir) == 0xC1)
    }

    @Test func `break is shown when its byte is the first`() {
        var chip = makeChip()
        chip.receive(0x41)
        #expect(chip.receiveBreak() == true)
        #expect(chip.read(.lsr) == 0xE1)
        #expect(chip.read(.data) == 0x41)
        #expect(chip.read(.lsr) == 0xF1)
        #expect(chip.read(.lsr) == 0x61)
        #expect(chip.read(.data) == 0)
    }

    @Test func `modem lines show what changed until they are read`() {
        var chip = makeChip()
        chip.setModemInputs([.cts, .dsr, .ri])
        #expect(chip.read(.msr) == 0x78)
        chip.setModemInputs([.cts, .dsr, .dcd])
        #expect(chip.read(.msr) == 0xBC)
        #expect(chip.read(.msr) == 0xB0)
    }

    @Test func `loopback joins outputs to inputs`() {
        // Linux wants CTS and DCD for RTS and OUT2.
        var chip = UART16550()
        _ = chip.write(.mcr, 0x1A)
        #expect(chip.read(.msr) & 0xF0 == 0x90)
        #expect(chip.write(.data, 0x55) == nil)
        #expect(chip.read(.lsr) == 0x61)
        #expect(chip.read(.data) == 0x55)
    }

    @Test func `loopback overruns`() {
        var chip = UART16550()
        _ = chip.write(.mcr, 0x10)
        _ = chip.write(.data, 1)
        _ = chip.write(.data, 2)
        #expect(chip.read(.lsr) == 0x63)
        #expect(chip.read(.lsr) == 0x61)
        #expect(chip.read(.data) == 1)
    }

    @Test func `interrupt needs OUT2 and no loopback`() {
        var chip = makeChip()
        chip.receive(1)
        _ = chip.write(.mcr, 0x03)
        #expect(!chip.interruptPending)
        _ = chip.write(.mcr, 0x0B)
        #expect(chip.interruptPending)
        _ = chip.write(.mcr, 0x1B)
        #expect(!chip.interruptPending)
    }

    @Test func `input waits until the guest listens`() {
        var chip = UART16550()
        #expect(chip.room == 0)
        _ = chip.write(.mcr, 0x02)
        #expect(chip.room == 1)
        _ = chip.write(.mcr, 0x00)
        _ = chip.write(.ier, 0x01)
        #expect(chip.room == 1)
    }

    @Test func `dropping RTS while interrupts are on makes the terminal wait`() {
        var chip = makeChip()
        #expect(chip.room == 16)
        _ = chip.write(.mcr, 0x09)
        #expect(chip.room == 0)
        _ = chip.write(.mcr, 0x0B)
        #expect(chip.room == 16)
        // Another driver that does not know RTS.
        _ = chip.write(.mcr, 0x08)
        _ = chip.write(.ier, 0)
        _ = chip.write(.ier, 1)
        #expect(chip.room == 16)
    }

    @Test func `guest that only polls is served as well`() {
        var chip = UART16550()
        for _ in 0..<40 { _ = chip.read(.lsr) }
        #expect(chip.room == 1)
    }

    /// The steps of Linux's 8250_port.c that tell a 16550A from its successors.
    @Test func `probe finds a plain 16550A`() {
        var chip = UART16550()
        _ = chip.write(.ier, 0)
        #expect(chip.read(.ier) & 0x0F == 0)
        _ = chip.write(.ier, 0x0F)
        #expect(chip.read(.ier) == 0x0F)
        _ = chip.write(.ier, 0)
        _ = chip.write(.lcr, 0xBF)
        _ = chip.write(.iir, 0)
        _ = chip.write(.lcr, 0)
        _ = chip.write(.iir, 0x01)
        #expect(chip.read(.iir) >> 6 == 3)
        // No enhanced feature register in either mode: reads show IIR.
        for lcr in [0x80, 0xBF] as [UInt8] {
            _ = chip.write(.lcr, lcr)
            #expect(chip.read(.iir) != 0)
        }
        // No 64-byte FIFO.
        for lcr in [0x00, 0x80] as [UInt8] {
            _ = chip.write(.lcr, lcr)
            _ = chip.write(.iir, 0x21)
            #expect(chip.read(.iir) >> 5 == 6)
        }
        // No UART-unit enable of an XScale.
        _ = chip.write(.lcr, 0)
        _ = chip.write(.ier, 0x40)
        #expect(chip.read(.ier) & 0x40 == 0)
    }
}

@Suite("Serial port") struct SerialPortTests {
    private final class Terminal: SerialTerminal {
        private struct State {
            var sent: [UInt8] = []
            var input: ArraySlice<UInt8> = []
            var port: SerialPort?
        }
        private let state = Lock(State())

        func send(_ byte: UInt8) { state { $0.sent.append(byte) } }
        func roomAvailable() { offer() }
        func connect(_ port: SerialPort) { state { $0.port = port } }
        func type(_ bytes: [UInt8]) {
            state { $0.input += bytes }
            offer()
        }
        private func offer() {
            let (port, input) = state { ($0.port, $0.input) }
            guard let port else { return }
            let taken = port.receive(input)
            state { $0.input = $0.input.dropFirst(taken) }
        }
        var sent: [UInt8] { state { $0.sent } }
        var left: Int { state { $0.input.count } }
    }

    private struct Bench {
        let lines = LineRecorder()
        let terminal = Terminal()
        let port: SerialPort
        let bus: PortBus

        init() {
            port = SerialPort(line: lines.line(4), terminal: terminal)
            terminal.connect(port)
            bus = PortBus(port.claims)
        }

        func open() {
            bus.write(0x3FA, .byte, 0x81)
            bus.write(0x3FC, .byte, 0x0B)
            bus.write(0x3F9, .byte, 0x01)
        }
    }

    @Test func `bytes reach the terminal in order`() {
        let bench = Bench()
        for byte in "hello".utf8 { bench.bus.write(0x3F8, .byte, UInt32(byte)) }
        #expect(bench.terminal.sent == Array("hello".utf8))
    }

    @Test func `paste of 64 KB loses no byte`() {
        let bench = Bench()
        let text = (0..<65_536).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 3) }
        bench.terminal.type(text)
        #expect(bench.terminal.left == text.count)
        bench.open()
        var read: [UInt8] = []
        var idle = 0
        var rounds = 0
        while idle < 3, rounds < text.count {
            guard bench.lines.level(4) else {
                idle += 1
                continue
            }
            // As an interrupt handler does it: until nothing is left.
            while bench.bus.read(0x3FA, .byte) & 1 == 0, rounds < text.count {
                rounds += 1
                while bench.bus.read(0x3FD, .byte) & 1 != 0, read.count <= text.count { read.append(UInt8(bench.bus.read(0x3F8, .byte))) }
            }
        }
        #expect(read == text)
        #expect(bench.terminal.left == 0)
    }

    @Test func `what is typed before a driver starts survives its start`() {
        let bench = Bench()
        bench.terminal.type(Array("login\n".utf8))
        bench.bus.write(0x3FA, .byte, 0x01)
        bench.bus.write(0x3FA, .byte, 0x07)
        bench.bus.write(0x3FA, .byte, 0x00)
        _ = bench.bus.read(0x3F8, .byte)
        bench.open()
        let read = (0..<6).map { _ in UInt8(bench.bus.read(0x3F8, .byte)) }
        #expect(read == Array("login\n".utf8))
    }

    @Test func `line falls and rises for each byte sent with the interrupt enabled`() {
        let bench = Bench()
        bench.open()
        bench.bus.write(0x3F9, .byte, 0x02)
        #expect(bench.lines.rises(4) == 1)
        bench.bus.write(0x3F8, .byte, 0x41)
        #expect(bench.lines.rises(4) == 2)
        _ = bench.bus.read(0x3FA, .byte)
        #expect(!bench.lines.level(4))
    }

    @Test func `polled output leaves the line alone`() {
        let bench = Bench()
        for _ in 0..<100 { bench.bus.write(0x3F8, .byte, 0x41) }
        #expect(bench.lines.changes.isEmpty)
    }

    @Test func `restore raises the line again`() {
        let bench = Bench()
        bench.open()
        bench.terminal.type([1, 2, 3])
        let saved = bench.port.save()
        let other = Bench()
        other.port.restore(saved)
        #expect(other.lines.level(4))
        #expect(other.bus.read(0x3F8, .byte) == 1)
    }

    @Test func `reset is what power-on is`() {
        let bench = Bench()
        bench.open()
        bench.terminal.type([1, 2, 3])
        bench.port.reset()
        #expect(bench.port.save() == UART16550())
        #expect(!bench.lines.level(4))
    }
}
