import Synchronization
import VMM

/// A function on the PCI bus: its configuration space, and what its base addresses lead to.
///
/// Called on vCPU threads: must not throw or trap, whatever the guest asks. A configuration access never leaves the
/// aligned four bytes that it starts in; an access to a window starts inside it, but may end behind it.
/// The bus asks for `windows` with its own lock held: a function calls nothing of the bus with its own lock held.
public protocol PCIFunction: Resettable {
    func readConfiguration(_ offset: UInt8, _ width: AccessWidth) -> UInt32
    func writeConfiguration(_ offset: UInt8, _ width: AccessWidth, _ value: UInt32)
    /// What the base address registers decode now.
    var windows: [PCIConfigurationSpace.Window] { get }
    /// - Parameter index: the number of the base address register.
    func read(_ index: Int, _ offset: UInt64, _ width: AccessWidth) -> UInt64
    func write(_ index: Int, _ offset: UInt64, _ width: AccessWidth, _ value: UInt64)
}

/// Where a function sits on bus 0.
public struct PCIAddress: Hashable, Sendable {
    /// Slot 0 to 31 and function 0 to 7 as in bits 15 to 8 of a configuration address.
    public let rawValue: UInt8

    /// - Precondition: device below 32, function below 8: the machine's own wiring.
    public init(device: UInt8, function: UInt8 = 0) {
        precondition(device < 32 && function < 8)
        rawValue = device << 3 | function
    }
}

/// Bus 0: the functions on it, built once, and where their base addresses lie now.
///
/// It answers what fixed devices leave over of two windows. A guest may put base addresses anywhere: where two overlap, the
/// function in the lower slot answers; outside of the windows, nobody does.
public final class PCIBus: Sendable {
    /// Ports for base addresses. Below lie the fixed ones of a PC.
    public static let portWindow: ClosedRange<UInt16> = 0x1000...0xFFFF
    /// Addresses for base addresses, up to the firmware's place below 4 GB.
    public static let memoryWindow: Range<UInt64> = 0xF000_0000..<0xFFC0_0000

    private struct Route {
        let window: PCIConfigurationSpace.Window
        let function: any PCIFunction
    }

    /// By `PCIAddress.rawValue`.
    private let functions: [(any PCIFunction)?]
    private let routes = Mutex<[Route]>([])

    public init(_ functions: [PCIAddress: any PCIFunction]) {
        var table = [(any PCIFunction)?](repeating: nil, count: 256)
        for (address, function) in functions { table[Int(address.rawValue)] = function }
        self.functions = table
        refresh()
    }

    func function(at index: UInt8) -> (any PCIFunction)? { functions[Int(index)] }

    /// Looks at all base addresses again: after a guest wrote to one or to a command register, and after functions
    /// were restored.
    public func refresh() {
        // Under the lock, so that of two CPUs' looks the later one stays.
        routes.withLock { routes in
            routes = functions.compactMap(\.self).flatMap { function in
                function.windows.map { Route(window: $0, function: function) }
            }
        }
    }

    /// The RST# line of all functions.
    func reset() {
        for function in functions { function?.reset() }
        refresh()
    }

    private func route(_ space: PCIConfigurationSpace.AddressSpace, _ address: UInt64) -> Route? {
        routes.withLock { routes in
            routes.first { $0.window.space == space && $0.window.addresses.contains(address) }
        }
    }

    fileprivate func read(
        _ space: PCIConfigurationSpace.AddressSpace, _ address: UInt64, _ width: AccessWidth
    ) -> UInt64 {
        guard let route = route(space, address) else { return width.allOnes }
        return route.function.read(route.window.index, address - route.window.addresses.lowerBound, width)
    }

    fileprivate func write(
        _ space: PCIConfigurationSpace.AddressSpace, _ address: UInt64, _ width: AccessWidth, _ value: UInt64
    ) {
        guard let route = route(space, address) else { return }
        route.function.write(route.window.index, address - route.window.addresses.lowerBound, width, value)
    }

    /// For the port bus, as what its fixed claims leave over.
    public var portClaim: PortBus.Claim { .init(Self.portWindow, PortWindow(bus: self)) }
    /// For the bus of memory addresses, as what its fixed claims leave over.
    public var memoryClaim: MMIOBus.Claim { .init(Self.memoryWindow, MemoryWindow(bus: self)) }

    private final class PortWindow: PortDevice {
        let bus: PCIBus

        init(bus: PCIBus) { self.bus = bus }

        func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 {
            UInt32(truncatingIfNeeded: bus.read(.ports, UInt64(offset &+ portWindow.lowerBound), width))
        }

        func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) {
            bus.write(.ports, UInt64(offset &+ portWindow.lowerBound), width, UInt64(value))
        }
    }

    private final class MemoryWindow: MMIODevice {
        let bus: PCIBus

        init(bus: PCIBus) { self.bus = bus }

        func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
            bus.read(.memory, offset &+ memoryWindow.lowerBound, width)
        }

        func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
            bus.write(.memory, offset &+ memoryWindow.lowerBound, width, value)
        }
    }
}
