import Synchronization
import Testing
import VMM

@testable import Devices

/// A terminal with input that has waited since before the guest started.
private final class WaitingTerminal: SerialTerminal {
    private let input: Mutex<[UInt8]>
    let port = Mutex<SerialPort?>(nil)

    init(_ input: [UInt8]) { self.input = Mutex(input) }

    func send(_ byte: UInt8) {}
    func roomAvailable() { offer() }
    func offer() {
        guard let port = port.withLock({ $0 }) else { return }
        input.withLock { $0.removeFirst(port.receive($0)) }
    }
}

@Suite("Serial port set-up") struct SerialPortSetUpTests {
    private let clock = VirtualClock(now: 1_000_000_000)
    private let terminal = WaitingTerminal(Array("echo".utf8))
    private let port: SerialPort

    init() {
        let port = SerialPort(line: LineRecorder().line(4), terminal: terminal, clock: clock)
        self.port = port
        terminal.port.withLock { $0 = port }
        terminal.offer()
    }

    /// What Linux does when it opens a port (8250_port.c: startup, then set_termios).
    private func openAsLinuxDoes() {
        port.writeByte(2, 0x01)
        port.writeByte(2, 0x07)
        port.writeByte(2, 0x00)
        _ = [5, 0, 2, 6].map(port.readByte)
        port.writeByte(3, 0x03)
        port.writeByte(4, 0x0B)
        _ = [5, 0, 2, 6].map(port.readByte)
        port.writeByte(1, 0x05)
        port.writeByte(2, 0x01)
        port.writeByte(2, 0x81)
    }

    private func readAll() -> [UInt8] {
        var bytes: [UInt8] = []
        while port.readByte(5) & 1 != 0, bytes.count < 100 { bytes.append(port.readByte(0)) }
        return bytes
    }

    @Test func `input that waited is complete although the driver reads and clears while it sets up`() {
        openAsLinuxDoes()
        #expect(readAll().isEmpty)
        clock.advance(by: 1_000_000)
        #expect(readAll() == Array("echo".utf8))
    }

    @Test func `second set-up is as quiet as the first`() {
        port.writeByte(4, 0x0B)
        clock.advance(by: 999_999)
        openAsLinuxDoes()
        clock.advance(by: 999_999)
        #expect(readAll().isEmpty)
        clock.advance(by: 1)
        #expect(readAll() == Array("echo".utf8))
    }

    @Test func `transmitter's interrupt is no set-up`() {
        openAsLinuxDoes()
        clock.advance(by: 999_999)
        port.writeByte(1, 0x07)
        clock.advance(by: 1)
        #expect(readAll() == Array("echo".utf8))
    }
}
