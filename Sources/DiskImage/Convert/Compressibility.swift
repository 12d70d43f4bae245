import Glibc

/// Whether deflate could make bytes smaller at all. What is encrypted or compressed already it could not, and finding that out
/// by doing it takes longer than anything else.
enum Compressibility {
    /// Deflate (RFC 1951) gains by bytes that are more frequent than others, and by repetitions. Without either it gains nothing:
    /// both are looked for, at about a fiftieth of its time.
    static func isHopeless(_ bytes: UnsafeRawBufferPointer) -> Bool {
        // Too few to judge by.
        guard bytes.count >= 4096 else { return false }
        return hasEvenBytes(bytes) && !hasRepetitions(bytes)
    }

    /// Chi-square of the 256 values: about 255 for random bytes, with a deviation of 23. A gain of one part in a hundred by
    /// Huffman's codes takes a sum of about a hundredth of the count.
    private static func hasEvenBytes(_ bytes: UnsafeRawBufferPointer) -> Bool {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 1024) { counts in
            counts.initialize(repeating: 0)
            // Four tables: the same value twice in a row does not wait for itself.
            var index = 0
            while index + 4 <= bytes.count {
                counts[Int(bytes[index])] &+= 1
                counts[256 + Int(bytes[index + 1])] &+= 1
                counts[512 + Int(bytes[index + 2])] &+= 1
                counts[768 + Int(bytes[index + 3])] &+= 1
                index += 4
            }
            let expected = Double(index) / 256
            var sum = 0.0
            for value in 0..<256 {
                let difference = Double(counts[value] &+ counts[256 + value] &+ counts[512 + value] &+ counts[768 + value]) - expected
                sum += difference * difference / expected
            }
            return sum < 400
        }
    }

    /// Whether there are more equal groups of four bytes than chance brings (one in 2^32 for each pair): looked for at every
    /// place, in a table of where each was last.
    private static func hasRepetitions(_ bytes: UnsafeRawBufferPointer) -> Bool {
        let bits = 13
        return withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 1 << bits) { places in
            places.initialize(repeating: 0)
            let limit = bytes.count / 256
            var found = 0
            var index = 0
            while index + 4 <= bytes.count {
                let word = bytes.loadUnaligned(fromByteOffset: index, as: UInt32.self)
                let slot = Int(truncatingIfNeeded: (word &* 0x9E37_79B1) >> UInt32(32 - bits))
                let place = Int(places[slot])
                if place < index, bytes.loadUnaligned(fromByteOffset: place, as: UInt32.self) == word {
                    found += 1
                    if found > limit { return true }
                }
                places[slot] = UInt32(truncatingIfNeeded: index)
                index += 1
            }
            return false
        }
    }
}
