import Glibc
public import Linux
import VMM

/// One direction's bytes of a chain: host addresses in guest memory, in a slot of a `VirtqueueSlots`.
///
/// SAFETY: the vectors belong to whoever holds the chain until it is completed; they lead to guest RAM, which lives as long as
/// the queue. `@unchecked Sendable`: a chain has one holder at a time.
@safe public struct VirtioBuffers: @unchecked Sendable {
    private var vectors: UnsafeMutablePointer<iovec>
    public private(set) var count: Int
    public private(set) var byteCount: UInt64

    /// - Parameter vectors: `count` vectors, and behind them room for one more for each time that it will be split.
    init(_ vectors: UnsafeMutablePointer<iovec>, count: Int, byteCount: UInt64) {
        unsafe self.vectors = unsafe vectors
        self.count = count
        self.byteCount = byteCount
    }

    public var isEmpty: Bool { count == 0 }

    /// For a transfer that is over before the chain is completed.
    public var ioBuffers: IOBuffers {
        unsafe IOBuffers(UnsafeBufferPointer(start: vectors, count: count), byteCount: byteCount)
    }

    /// Cuts off the first `count` bytes. At most twice for what a chain came with: drivers may put the border anywhere, also
    /// into the middle of a descriptor (virtio 1.2, section 2.7.4).
    /// - Precondition: `count` is at most `byteCount`.
    public mutating func takeFirst(_ taken: UInt64) -> VirtioBuffers {
        precondition(taken <= byteCount)
        var left = taken
        var index = 0
        while left > 0, case let length = unsafe UInt64(vectors[index].iov_len), left >= length {
            left -= length
            index += 1
        }
        var first = unsafe VirtioBuffers(vectors, count: index, byteCount: taken)
        if left > 0, let base = unsafe vectors[index].iov_base {
            // The vector with the border in it becomes two.
            unsafe (vectors + index + 1).update(from: vectors + index, count: self.count - index)
            unsafe vectors[index].iov_len = Int(left)
            unsafe vectors[index + 1].iov_base = unsafe base + Int(left)
            unsafe vectors[index + 1].iov_len -= Int(left)
            first.count += 1
            count += 1
        }
        unsafe vectors = unsafe vectors + first.count
        count -= first.count
        byteCount -= taken
        return first
    }

    /// Copies the first bytes out: headers.
    /// - Returns: how many there were.
    public func copyOut(_ destination: UnsafeMutableRawBufferPointer) -> Int {
        var done = 0
        for index in 0..<count {
            guard let base = unsafe vectors[index].iov_base, done < destination.count else { break }
            let part = unsafe min(vectors[index].iov_len, destination.count - done)
            unsafe destination.baseAddress?.advanced(by: done).copyMemory(from: base, byteCount: part)
            done += part
        }
        return done
    }

    /// Copies bytes in from the start on: answers.
    /// - Returns: how many there was room for.
    @discardableResult public func copyIn(_ source: UnsafeRawBufferPointer) -> Int {
        var done = 0
        for index in 0..<count {
            guard let base = unsafe vectors[index].iov_base, let start = source.baseAddress, done < source.count else { break }
            let part = unsafe min(vectors[index].iov_len, source.count - done)
            unsafe base.copyMemory(from: start + done, byteCount: part)
            done += part
        }
        return done
    }

    /// The first bytes as an array, for what is not asked for often.
    public func bytes(limit: Int) -> [UInt8] {
        let room = Int(min(UInt64(max(limit, 0)), byteCount))
        var bytes = [UInt8](repeating: 0, count: room)
        _ = unsafe bytes.withUnsafeMutableBytes { unsafe copyOut($0) }
        return bytes
    }

    /// A little-endian number at the start; `nil` when there are too few bytes.
    public func load<T: FixedWidthInteger & BitwiseCopyable>(as type: T.Type) -> T? {
        var value: T = 0
        let count = unsafe withUnsafeMutableBytes(of: &value) { unsafe copyOut($0) }
        return count == MemoryLayout<T>.size ? T(littleEndian: value) : nil
    }

    /// Writes a byte at the start, if there is one.
    public func store(_ byte: UInt8) {
        guard count > 0 else { return }
        unsafe vectors[0].iov_base?.storeBytes(of: byte, as: UInt8.self)
    }

    /// Copies an array in from the start on, as far as there is room.
    public func store(_ bytes: [UInt8]) { unsafe bytes.withUnsafeBytes { _ = unsafe copyIn($0) } }

    /// Fills all of it with the host's random numbers.
    func fillRandomly() {
        for index in 0..<count {
            unsafe RandomBytes.fill(
                UnsafeMutableRawBufferPointer(start: vectors[index].iov_base, count: vectors[index].iov_len))
        }
    }
}

/// The vectors of all chains that a queue can have in flight, allocated once.
///
///     slot: readable vectors | room for two splits | writable vectors | room for two splits, and a zero vector
///
/// The zero vector ends the writable ones, wherever they were split. SAFETY: each slot has one holder; indices are below the
/// counts of `init`. `@unchecked Sendable`: the pointer never changes, and slots are handed on under the queue's lock.
@safe final class VirtqueueSlots: @unchecked Sendable {
    /// Vectors that cross a border between ranges of memory.
    private static let crossings = 8
    private static let splits = 2

    private let vectors: UnsafeMutablePointer<iovec>
    private let stride: Int
    private let total: Int
    /// The most vectors that a chain can have.
    let capacity: Int

    init(queueSize: UInt16) {
        capacity = Int(queueSize) + Self.crossings
        stride = capacity + 2 * Self.splits + 1
        total = stride * Int(queueSize)
        unsafe vectors = .allocate(capacity: total)
        // Pages that no chain ever needs stay untouched: every vector is written before it is read.
    }

    deinit { unsafe vectors.deallocate() }

    /// Collects a chain's buffers into a slot.
    @safe struct Builder {
        private let start: UnsafeMutablePointer<iovec>
        private let capacity: Int
        private var readableCount = 0
        private var writableCount = 0
        private var readableBytes: UInt64 = 0
        private var writableBytes: UInt64 = 0

        fileprivate init(_ start: UnsafeMutablePointer<iovec>, capacity: Int) {
            unsafe self.start = unsafe start
            self.capacity = capacity
        }

        private var writable: UnsafeMutablePointer<iovec> {
            unsafe start + (readableCount + VirtqueueSlots.splits)
        }

        /// Adds bytes of guest memory, which may lie in several of its ranges.
        /// - Returns: `false` when they are not all RAM, come in the wrong order (section 2.7.4.2) or are too many pieces.
        mutating func append(_ address: UInt64, _ byteCount: UInt32, isWritable: Bool, _ memory: GuestMemory) -> Bool {
            guard isWritable || writableCount == 0 else { return false }
            var address = address
            var left = UInt64(byteCount)
            while left > 0 {
                guard readableCount + writableCount < capacity,
                    let part = unsafe memory.firstPart(of: address, count: left)
                else { return false }
                let vector = unsafe iovec(iov_base: part.baseAddress, iov_len: part.count)
                if isWritable {
                    unsafe writable[writableCount] = unsafe vector
                    writableCount += 1
                    writableBytes += UInt64(part.count)
                } else {
                    unsafe start[readableCount] = unsafe vector
                    readableCount += 1
                    readableBytes += UInt64(part.count)
                }
                address &+= UInt64(part.count)
                left -= UInt64(part.count)
            }
            return true
        }

        func finish() -> (readable: VirtioBuffers, writable: VirtioBuffers) {
            for index in 0...VirtqueueSlots.splits { unsafe writable[writableCount + index] = unsafe iovec() }
            return unsafe (
                VirtioBuffers(start, count: readableCount, byteCount: readableBytes),
                VirtioBuffers(writable, count: writableCount, byteCount: writableBytes)
            )
        }
    }

    func builder(_ slot: UInt16) -> Builder { unsafe Builder(vectors + Int(slot) * stride, capacity: capacity) }

    /// Tells the engines of what a device wrote.
    /// - Parameter readableCount: how many readable vectors the chain came with.
    func noteWritten(_ slot: UInt16, readableCount: Int, _ memory: GuestMemory) {
        var vector = unsafe vectors + (Int(slot) * stride + readableCount + Self.splits)
        while let base = unsafe vector.pointee.iov_base {
            unsafe memory.noteWritten(base, count: vector.pointee.iov_len)
            unsafe vector = unsafe vector + 1
        }
    }
}
