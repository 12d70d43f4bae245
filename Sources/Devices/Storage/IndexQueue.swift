/// Small numbers, first in, first out, in room that never grows.
struct IndexQueue {
    private var room: [Int32]
    private var first = 0
    private(set) var count = 0

    init(capacity: Int) { room = [Int32](repeating: 0, count: max(1, capacity)) }

    /// - Precondition: there is room.
    mutating func append(_ index: Int) {
        precondition(count < room.count)
        let place = first + count
        room[place < room.count ? place : place - room.count] = Int32(truncatingIfNeeded: index)
        count += 1
    }

    mutating func popFirst() -> Int? {
        guard count > 0 else { return nil }
        let index = Int(room[first])
        first = first + 1 < room.count ? first + 1 : 0
        count -= 1
        return index
    }
}
