import Devices
import VMM

/// The machine's devices, wired to the ports and interrupt lines of a PC.
final class Board: Sendable {
    let ports: PortBus
    let interrupts: I8259Pair
    let serialPort: SerialPort
    private let resettable: [any Resettable]

    init(clock: any Clock, power: any PowerControl, terminal: any SerialTerminal, map: MemoryMap) {
        let interrupts = I8259Pair()
        func line(_ number: UInt8) -> InterruptLine { InterruptLine(interrupts, number) }

        let timer = I8253Port(clock: clock, line: line(0), isWaiting: { interrupts.isWaiting(0) })
        let serialPort = SerialPort(line: line(4), terminal: terminal)

        ports = PortBus([interrupts.claims, timer.claims, serialPort.claims].flatMap { $0 })
        resettable = [timer, serialPort, interrupts]
        self.interrupts = interrupts
        self.serialPort = serialPort
    }

    /// The reset line. Lines fall before the interrupt controller forgets them.
    func reset() {
        for device in resettable { device.reset() }
    }

    /// Writes the firmware's tables into memory. Returns where they start.
    func writeTables(_ memory: GuestMemory) -> UInt64? { nil }
}
