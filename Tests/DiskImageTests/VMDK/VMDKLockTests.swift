import DiskImage
import Linux
import TestSupport
import Testing

/// No request waits for another's data to be written.
@Suite("VMDK requests beside each other", .timeLimit(.minutes(1))) struct VMDKLockTests {
    @Test func `a write that finds room holds nobody up`() throws {
        let gate = Gate { if case .write(let bytes, _) = $0 { bytes.count >= 1024 } else { false } }
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false, observer: gate)
        try VMDKImage.create(file, byteCount: 8 << 20, fileName: "disk.vmdk")
        let image = try VMDKImage(file)
        try image.put([1], at: 0)
        gate.arm()
        let writer = try PosixThread("writer") { try? image.put([UInt8](repeating: 2, count: 4096), at: 1 << 20) }
        #expect(gate.awaitChange())
        // In the same grain table: a look, a read, a write in place, one that finds room, and a flush.
        #expect(image.beginTransfer(.read, at: 0, count: 1) != nil)
        #expect(try image.bytes(at: 0, count: 1) == [1])
        try image.put([3], at: 1)
        try image.put([4], at: 2 << 20)
        try image.flush()
        // Its data is not there yet.
        #expect(try image.bytes(at: 1 << 20, count: 1) == [0])
        gate.open()
        writer.join()
        #expect(!gate.timedOut)
        #expect(try image.bytes(at: 1 << 20, count: 1) == [2] && image.bytes(at: 2 << 20, count: 1) == [4])
        #expect(try VMDKCheck(file).findings == [])
    }

    @Test func `writers of all grains at once lose nothing`() throws {
        let file = ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false)
        try VMDKImage.create(file, byteCount: 80 << 20, fileName: "disk.vmdk")
        let image = try VMDKImage(file)
        // Sectors of each grain go to different threads, which so find room for the same grains.
        let threads = try (0..<4).map { (me: Int) in
            try PosixThread("writer") {
                var random = SplitMix64(seed: UInt64(me))
                for _ in 0..<1500 {
                    let sector = UInt64.random(in: 0..<(80 << 20) / 2048, using: &random) * 4 + UInt64(me)
                    try? image.put([UInt8](repeating: UInt8(me + 1), count: 512), at: sector * 512)
                }
            }
        }
        for thread in threads { thread.join() }
        var written = 0
        for me in 0..<4 {
            var random = SplitMix64(seed: UInt64(me))
            for _ in 0..<1500 {
                let sector = UInt64.random(in: 0..<(80 << 20) / 2048, using: &random) * 4 + UInt64(me)
                if try image.bytes(at: sector * 512, count: 512).allSatisfy({ $0 == UInt8(me + 1) }) { written += 1 }
            }
        }
        #expect(written == 6000)
        #expect(try VMDKCheck(file).findings == [])
    }
}
