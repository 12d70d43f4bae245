import Synchronization
import VMM

/// The registers of a VGA in text mode as a value (IBM VGA XGA Technical Reference, chapter 2): what boot loaders and
/// kernels write that use the screen at 0xB8000 by themselves.
///
/// Modelled: every register keeps what it is given; the place of the cursor and the first character shown count. Not
/// modelled: graphics, fonts, colours, time: the retrace is on at every other look, so nobody waits for it long.
public struct VGARegisters: Codable, Hashable, Sendable {
    /// Of the CRT controller.
    private enum CRTC {
        static let startHigh = 0x0C
        static let cursorHigh = 0x0E
        static let mask: UInt8 = 0x1F
    }

    /// Index registers with what they lead to.
    private struct Bank: Codable, Hashable, Sendable {
        var index: UInt8 = 0
        var registers: [UInt8]
        init(_ count: Int) { registers = Array(repeating: 0, count: count) }

        var value: UInt8 {
            get { Int(index) < registers.count ? registers[Int(index)] : 0 }
            set { if Int(index) < registers.count { registers[Int(index)] = newValue } }
        }

        subscript(_ index: Int) -> UInt8 { index < registers.count ? registers[index] : 0 }
    }

    private var crtc = Bank(32)
    private var sequencer = Bank(8)
    private var graphics = Bank(16)
    private var attribute = Bank(32)
    private var attributeTakesData = false
    /// Miscellaneous output: colour addresses, memory on.
    private var miscellaneous: UInt8 = 0x67
    private var isRetrace = false

    public init() {}

    private func word(_ index: Int) -> Int { Int(crtc[index]) << 8 | Int(crtc[index + 1]) }
    /// The first character shown, counted from the start of the text page.
    public var start: Int { word(CRTC.startHigh) }
    /// Where the cursor is, counted from the start of the text page.
    public var cursor: Int { word(CRTC.cursorHigh) }

    public mutating func read(_ port: UInt16) -> UInt8 {
        switch port {
        case 0x3B4, 0x3D4: return crtc.index
        case 0x3B5, 0x3D5: return crtc.value
        case 0x3C0: return attribute.index
        case 0x3C1: return attribute.value
        case 0x3C4: return sequencer.index
        case 0x3C5: return sequencer.value
        case 0x3CC: return miscellaneous
        case 0x3CE: return graphics.index
        case 0x3CF: return graphics.value
        case 0x3BA, 0x3DA:
            // Input status 1: display disabled, vertical retrace.
            attributeTakesData = false
            isRetrace.toggle()
            return isRetrace ? 0x09 : 0x00
        default: return 0
        }
    }

    public mutating func write(_ port: UInt16, _ value: UInt8) {
        switch port {
        case 0x3B4, 0x3D4: crtc.index = value & CRTC.mask
        case 0x3B5, 0x3D5: crtc.value = value
        case 0x3C0:
            if attributeTakesData { attribute.value = value } else { attribute.index = value & 0x1F }
            attributeTakesData.toggle()
        case 0x3C2: miscellaneous = value
        case 0x3C4: sequencer.index = value
        case 0x3C5: sequencer.value = value
        case 0x3CE: graphics.index = value
        case 0x3CF: graphics.value = value
        default: break
        }
    }
}

/// A VGA's registers on their ports. Its text page is the machine's RAM at 0xB8000.
public final class VGAPorts: PortClaimant, Resettable {
    public static let ports: [ClosedRange<UInt16>] = [
        0x3B4...0x3B5, 0x3BA...0x3BA, 0x3C0...0x3CF, 0x3D4...0x3D5, 0x3DA...0x3DA,
    ]

    private let chip = Mutex(VGARegisters())
    private let onWrite: @Sendable () -> Void

    /// - Parameter onWrite: hears of each write: somebody uses the screen. On the vCPU's thread, without locks.
    public init(onWrite: @escaping @Sendable () -> Void = {}) { self.onWrite = onWrite }

    public var claims: [PortBus.Claim] { Self.ports.map { .init($0, Range(self, base: $0.lowerBound)) } }

    public func reset() { chip.withLock { $0 = VGARegisters() } }
    public func save() -> VGARegisters { chip.withLock { $0 } }
    public func restore(_ saved: VGARegisters) { chip.withLock { $0 = saved } }

    /// A run of ports.
    private final class Range: BytePortDevice {
        let vga: VGAPorts
        let base: UInt16

        init(_ vga: VGAPorts, base: UInt16) {
            self.vga = vga
            self.base = base
        }

        func readByte(_ offset: UInt16) -> UInt8 { vga.chip.withLock { $0.read(base &+ offset) } }

        func writeByte(_ offset: UInt16, _ value: UInt8) {
            vga.chip.withLock { $0.write(base &+ offset, value) }
            vga.onWrite()
        }
    }
}
