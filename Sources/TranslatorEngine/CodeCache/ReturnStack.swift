import Glibc
import Linux

/// The stack that translated code runs on: for each guest call that has not returned yet the guest's return address
/// and the host's, so that a guest's return is a host's return, which the CPU foresees.
///
/// A return compares the address that it popped from the guest's stack with the one on top of this one. When they
/// differ, a thunk looks a few entries down (a call that never returned), then empties the stack and looks into the
/// jump cache. The stack is emptied too by everything that makes an entry wrong: leaving translated code, flushing
/// translations, removing blocks. So it never holds an entry of another mode or address space.
///
///     base                         limit                         returnBase
///     | signals and thunks' calls  | (guest, host) (guest, host) | sentinels |
///
/// The guest cannot reach it: it is no guest memory, and only calls of translated code push to it. Helpers run on the
/// host's own stack.
final class ReturnStack {
    private let mapping: MemoryMapping
    private static let reserve = 64 << 10
    private static let byteCount = 64 << 10
    /// How far down a thunk looks; so many sentinels lie above `base`.
    static let depth = 4

    /// - Parameter miss: where a return to the address `JumpCache.never` leads, which the sentinels have.
    init(miss: UInt64) throws(SystemError) {
        mapping = try MemoryMapping(
            byteCount: Self.reserve + Self.byteCount, protection: PROT_READ | PROT_WRITE, flags: MAP_PRIVATE | MAP_ANONYMOUS,
            guardByteCount: MemoryMapping.standardGuard)
        for index in 0...Self.depth {
            let entry = mapping.base + Int(base - UInt64(UInt(bitPattern: mapping.base))) + index * 16
            entry.storeBytes(of: miss, as: UInt64.self)
            entry.storeBytes(of: JumpCache.never, toByteOffset: 8, as: UInt64.self)
        }
    }
    /// The empty stack's pointer: aligned to 16 bytes, as between instructions of the guest it always is.
    var base: UInt64 {
        UInt64(UInt(bitPattern: mapping.base)) + UInt64(Self.reserve + Self.byteCount - (Self.depth + 1) * 16)
    }
    var limit: UInt64 { UInt64(UInt(bitPattern: mapping.base)) + UInt64(Self.reserve) }
}
