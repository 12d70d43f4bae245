import Synchronization

/// What was decompressed last: a guest reads clusters and grains in pieces. The lock is held only to find and keep.
final class UnpackedParts: Sendable {
    struct Key: Hashable {
        /// Of the packed bytes in the file, or of a part that never changes on the disk.
        var place: UInt64
        var byteCount: UInt64
        /// How often room was given back before: there may be something else now.
        var generation: UInt64 = 0
    }

    private struct Kept: Sendable {
        var key: Key
        var bytes: [UInt8]
    }

    private let kept = Mutex<[Kept]>([])
    private static let limit = 4

    func find(_ key: Key) -> [UInt8]? {
        kept.withLock { kept in kept.first { $0.key == key }?.bytes }
    }

    func keep(_ key: Key, _ bytes: [UInt8]) {
        kept.withLock { kept in
            if kept.count >= Self.limit { kept.removeFirst() }
            kept.append(Kept(key: key, bytes: bytes))
        }
    }
}
