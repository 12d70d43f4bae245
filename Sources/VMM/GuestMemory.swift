import CLinux
import Glibc
public import Linux

/// The guest's RAM: one shared memfd, mapped once, seen by the guest as a few ranges of physical addresses. One of them may
/// be ROM: the guest reads and executes it, and what it writes there goes nowhere, as on a PC's bus.
///
/// The only type of this target that touches raw guest memory. Invariant: every pointer formed lies in the
/// mapping, because `offset(of:count:)` checks the address and the length against one range, and the mapping
/// lives as long as the object. The guest writes at the same time: callers read a value once and check the copy.
public final class GuestMemory: Sendable {
    /// A run of guest-physical RAM and where it lies in the mapping.
    public struct Range: Hashable, Sendable {
        public let base: UInt64
        public let byteCount: UInt64
        public let offset: UInt64
        /// Only `writeROM` changes it.
        public let isReadOnly: Bool
        public var end: UInt64 { base + byteCount }
    }

    /// Sorted, not overlapping, page aligned.
    public let ranges: [Range]
    public let byteCount: UInt64
    private let descriptor: FileDescriptor
    private let mapping: MemoryMapping
    /// See `GuestMemory+Watch.swift`.
    @usableFromInline let watch: MemoryWatch

    public static let pageSize: UInt64 = 4096

    /// Lays out ranges one after the other in a new memfd.
    /// - Parameters:
    ///   - ranges: base and length of each, page aligned, ascending, at most 16.
    ///   - rom: a range between those that is read-only for the guest.
    /// - Throws: `SystemError` when the host cannot give that much address space.
    public init(
        ranges requested: [(base: UInt64, byteCount: UInt64)], rom: (base: UInt64, byteCount: UInt64)? = nil
    ) throws(SystemError) {
        precondition(!requested.isEmpty && requested.count <= 16)
        var ranges: [Range] = []
        var offset: UInt64 = 0
        let all = requested.map { ($0.base, $0.byteCount, false) } + (rom.map { [($0.base, $0.byteCount, true)] } ?? [])
        for (base, count, isReadOnly) in all.sorted(by: { $0.0 < $1.0 }) {
            precondition(base % Self.pageSize == 0 && count % Self.pageSize == 0 && count > 0)
            precondition(ranges.last.map { $0.end <= base } ?? true)
            ranges.append(Range(base: base, byteCount: count, offset: offset, isReadOnly: isReadOnly))
            offset += count
        }
        self.ranges = ranges
        byteCount = offset
        guard let size = Int(exactly: offset) else { throw SystemError("mmap", errno: ENOMEM) }
        descriptor = try FileDescriptor.memory("guest", byteCount: size)
        mapping = try MemoryMapping(
            byteCount: size, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED | MAP_NORESERVE,
            descriptor: descriptor.raw, guardByteCount: MemoryMapping.standardGuard)
        watch = try MemoryWatch(pageCount: size / Int(Self.pageSize))
    }

    /// The start of the mapping, for engines that map it into a guest or a TLB.
    public var hostBase: UnsafeMutableRawPointer { mapping.base }
    /// Borrowed; stays open as long as the object lives.
    public var fileDescriptor: CInt { descriptor.raw }

    /// Where `count` bytes at `gpa` lie in the mapping, all in one range.
    @inlinable
    func offset(of gpa: UInt64, count: UInt64, writes: Bool) -> Int? {
        for range in ranges where gpa >= range.base && gpa - range.base < range.byteCount {
            let inside = gpa - range.base
            guard range.byteCount - inside >= count, !(writes && range.isReadOnly) else { return nil }
            return Int(range.offset + inside)
        }
        return nil
    }

    /// The host address of `count` bytes at `gpa`, or `nil` when they are not all in one range of RAM. ROM is none.
    @inlinable
    public func hostAddress(of gpa: UInt64, count: UInt64) -> UnsafeMutableRawPointer? {
        guard let offset = offset(of: gpa, count: count, writes: true) else { return nil }
        return hostBase + offset
    }

    /// The same for bytes that are only to be read: RAM or ROM.
    @inlinable
    public func readableAddress(of gpa: UInt64, count: UInt64) -> UnsafeRawPointer? {
        guard let offset = offset(of: gpa, count: count, writes: false) else { return nil }
        return UnsafeRawPointer(hostBase + offset)
    }

    /// The first of `count` bytes at `gpa` that lie together on the host: all of them, or those in the first of several
    /// ranges. `nil` when `gpa` is not RAM.
    @inlinable
    public func firstPart(of gpa: UInt64, count: UInt64) -> UnsafeMutableRawBufferPointer? {
        for range in ranges where gpa >= range.base && gpa - range.base < range.byteCount && !range.isReadOnly {
            let inside = gpa - range.base
            return UnsafeMutableRawBufferPointer(
                start: hostBase + Int(range.offset + inside), count: Int(min(count, range.byteCount - inside)))
        }
        return nil
    }

    /// Whether all `count` bytes at `gpa` are RAM.
    public func contains(_ gpa: UInt64, count: UInt64) -> Bool { hostAddress(of: gpa, count: count) != nil }

    /// Reads a little-endian value; `nil` when the range is neither RAM nor ROM.
    @inlinable
    public func load<T: FixedWidthInteger & BitwiseCopyable>(_ gpa: UInt64, as type: T.Type) -> T? {
        guard let address = readableAddress(of: gpa, count: UInt64(MemoryLayout<T>.size)) else { return nil }
        return T(littleEndian: address.loadUnaligned(as: T.self))
    }

    /// Writes a little-endian value; `false` when the range is not RAM.
    @inlinable @discardableResult
    public func store<T: FixedWidthInteger & BitwiseCopyable>(_ gpa: UInt64, _ value: T) -> Bool {
        guard let address = hostAddress(of: gpa, count: UInt64(MemoryLayout<T>.size)) else { return false }
        address.storeBytes(of: value.littleEndian, as: T.self)
        noteWritten(address, count: MemoryLayout<T>.size)
        return true
    }

    /// Copies bytes in; `false`, and nothing written, when they do not all fit in RAM.
    @discardableResult
    public func write(_ bytes: [UInt8], at gpa: UInt64) -> Bool { write(bytes, at: gpa, toROM: false) }

    /// Copies bytes in where the guest cannot write: for whoever puts its firmware there. RAM takes them too.
    @discardableResult
    public func writeROM(_ bytes: [UInt8], at gpa: UInt64) -> Bool { write(bytes, at: gpa, toROM: true) }

    private func write(_ bytes: [UInt8], at gpa: UInt64, toROM: Bool) -> Bool {
        guard !bytes.isEmpty else { return true }
        guard let offset = offset(of: gpa, count: UInt64(bytes.count), writes: !toROM) else { return false }
        let address = hostBase + offset
        UnsafeMutableRawBufferPointer(start: address, count: bytes.count).copyBytes(from: bytes)
        noteWritten(address, count: bytes.count)
        return true
    }

    /// Copies bytes out; `nil` when they are not all in one range of RAM or ROM.
    public func read(_ gpa: UInt64, count: Int) -> [UInt8]? {
        guard count > 0 else { return count == 0 ? [] : nil }
        guard let address = readableAddress(of: gpa, count: UInt64(count)) else { return nil }
        return Array(UnsafeRawBufferPointer(start: address, count: count))
    }

    /// Gives all pages back to the host; the guest then reads zeros, as after power-on.
    public func clear() {
        // Punching the file drops the pages of every mapping of it.
        madvise(mapping.base, mapping.byteCount, MADV_REMOVE)
    }
}
