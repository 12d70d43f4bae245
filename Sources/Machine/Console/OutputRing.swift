/// The last 64 KB that a guest printed. Bytes are known by their number since the beginning, so that several readers
/// can be at different places; memory is taken only as the guest prints.
struct OutputRing {
    static let capacity = 64 << 10

    private var storage: [UInt8] = []
    /// The number of the byte that comes next.
    private(set) var end: UInt64 = 0

    /// The number of the oldest byte that is still there.
    var start: UInt64 { end - UInt64(storage.count) }

    mutating func append(_ byte: UInt8) {
        if storage.count < Self.capacity {
            storage.append(byte)
        } else {
            storage[Int(end % UInt64(Self.capacity))] = byte
        }
        end += 1
    }

    /// Up to `limit` bytes from a place on, which is moved to the oldest byte if it is before that.
    func bytes(from position: UInt64, limit: Int) -> [UInt8] {
        let first = max(position, start)
        guard first < end else { return [] }
        let count = min(limit, Int(end - first))
        let index = Int(first % UInt64(Self.capacity))
        let head = storage[index..<min(index + count, storage.count)]
        return Array(head + storage[0..<count - head.count])
    }
}
