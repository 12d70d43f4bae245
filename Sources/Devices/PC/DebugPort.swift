import Synchronization
import VMM

/// The port to which SeaBIOS writes what it does, 0x402: bytes out, gathered to lines. A read answers 0xE9, by which
/// SeaBIOS sees that somebody listens: without a listener it is not there, and costs nothing.
///
/// A guest can write for ever, and reset itself as often: lines are cut, and after so many bytes in the machine's life the
/// rest is dropped.
public final class DebugPort: BytePortDevice, PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [0x402...0x402]

    private struct State {
        var line: [UInt8] = []
        var byteCount = 0
    }

    private static let present: UInt8 = 0xE9
    private static let longestLine = 240
    /// SeaBIOS takes about 10 KB for a boot.
    private static let limit = 1 << 20

    private let state = Mutex(State())
    private let log: @Sendable (String) -> Void

    /// - Parameter log: gets each line, printable characters only. On the vCPU's thread, without locks.
    public init(_ log: @escaping @Sendable (String) -> Void) { self.log = log }

    public var claims: [PortBus.Claim] { [.init(Self.ports[0], self)] }

    public func readByte(_ offset: UInt16) -> UInt8 { offset == 0 ? Self.present : 0xFF }

    public func writeByte(_ offset: UInt16, _ value: UInt8) {
        guard offset == 0 else { return }
        let lines: [String] = state.withLock { state in
            guard state.byteCount < Self.limit else { return [] }
            state.byteCount += 1
            let isEnd = value == UInt8(ascii: "\n")
            if !isEnd { state.line.append((0x20..<0x7F).contains(value) ? value : UInt8(ascii: "?")) }
            let isLast = state.byteCount == Self.limit
            guard isEnd || isLast || state.line.count >= Self.longestLine else { return [] }
            defer { state.line.removeAll(keepingCapacity: true) }
            return [String(decoding: state.line, as: UTF8.self)] + (isLast ? ["(the rest is dropped)"] : [])
        }
        for line in lines where !line.isEmpty { log(line) }
    }

    /// Resets are the guest's to make: they give no new bytes.
    public func reset() { state.withLock { $0.line.removeAll(keepingCapacity: true) } }
}
