import ControlProtocol
import DiskImage
import Testing
import TestSupport

@Suite("Messages") struct MessageTests {
    @Test(arguments: SplitMix64.requestKinds)
    func `request comes out as it went in`(kind: Int) throws {
        var random = SplitMix64(seed: UInt64(kind))
        for _ in 0..<300 {
            let request = random.request(kind: kind)
            #expect(Int(request.kind) == kind)
            #expect(try Request(packet: request.encoded(), descriptorCount: request.descriptorCount) == request)
        }
    }

    @Test(arguments: SplitMix64.responseKinds)
    func `response comes out as it went in`(kind: Int) throws {
        var random = SplitMix64(seed: UInt64(kind))
        for _ in 0..<300 {
            let response = random.response(kind: kind)
            #expect(Int(response.kind) == kind)
            #expect(try Response(packet: response.encoded(), descriptorCount: response.descriptorCount) == response)
        }
    }

    @Test func `bytes of a message stay as they are`() throws {
        // 'v' 'm' 'd' version, kind, descriptors, zero; no machine, running only.
        #expect(try Request.status(nil, isRunningOnly: true).encoded() == [0x76, 0x6D, 0x64, 1, 1, 0, 0, 0, 0, 1])
        #expect(try Request.wait(.id(0x0102)).encoded() == [0x76, 0x6D, 0x64, 1, 4, 0, 0, 0, 0, 2, 1, 0, 0])
        #expect(try Request.load("/a").encoded() == [0x76, 0x6D, 0x64, 1, 8, 0, 0, 0, 2, 0, 0x2F, 0x61])
        #expect(try Response.failed(.busy, "x").encoded() == [0x76, 0x6D, 0x64, 1, 1, 0, 0, 0, 6, 1, 0, 0x78])
        #expect(try Response.console(id: 1, name: "", tty: "").encoded() == [0x76, 0x6D, 0x64, 1, 8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0])
    }

    @Test func `what is too long is not sent`() {
        let long = String(repeating: "x", count: Packet.longest)
        #expect(throws: MalformedMessage.self) { try Request.load(long).encoded() }
        #expect(throws: MalformedMessage.self) { try Request.load(String(repeating: "x", count: 1 << 17)).encoded() }
        #expect(throws: MalformedMessage.self) { try Response.failed(.other, long).encoded() }
    }

    @Test func `descriptors are as many as the message needs`() throws {
        var request = StartRequest(.name("a"))
        request.kernel = "/k"
        request.initrd = "/i"
        let packet = try Request.start(request).encoded()
        for count in [0, 1, 3, 4] {
            #expect(throws: MalformedMessage.self) { try Request(packet: packet, descriptorCount: count) }
        }
        #expect(throws: MalformedMessage.self) { try Request(packet: Request.reload.encoded(), descriptorCount: 1) }
        #expect(throws: MalformedMessage.self) {
            try Response(packet: Response.console(id: 1, name: "a", tty: "t").encoded(), descriptorCount: 0)
        }
    }

    @Test func `what a machine may be asked of its disks stays as it is`() throws {
        #expect(try Request.disks(.id(1), .createSnapshot("a")).encoded() == [0x76, 0x6D, 0x64, 1, 14, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0x61])
        #expect(try Request.ejectDisc(.id(1), isForced: true).encoded() == [0x76, 0x6D, 0x64, 1, 16, 0, 0, 0, 0, 1, 0, 0, 0, 1])
    }

    /// Names of any length, with anything in them, by the thousand.
    @Test(arguments: [(0, 1), (1, 10), (3, 4000), (5000, 12), (300, 1000)])
    func `an image with many snapshots goes over in parts that fit`(count: Int, length: Int) throws {
        var random = SplitMix64(seed: 9)
        var image = random.imageSummary(snapshotCount: 0)
        while image.qcow2 == nil { image = random.imageSummary(snapshotCount: 0) }
        image.path = String(repeating: "ä", count: 5000)
        image.qcow2?.backing = QCOW2Backing(name: "a\0b" + String(repeating: "🦫", count: 3000), format: String(repeating: "f", count: 3000))
        image.qcow2?.snapshots = (0..<count).map {
            ImageSnapshot(
                id: "\($0)", name: "\($0)" + String(repeating: "🦫", count: length), seconds: 1, machineStateByteCount: 0, byteCount: 2)
        }
        let parts = DiskReport.parts(disk: 1, level: 2, image)
        var ids: [String] = []
        for part in parts {
            let packet = try Response.image(part).encoded()
            let read = try Response(packet: packet, descriptorCount: 0)
            #expect(read == .image(part))
            ids += part.image.qcow2?.snapshots.map(\.id) ?? []
        }
        #expect(ids == (0..<count).map { "\($0)" })
        #expect(parts.count < 1024)
    }

    @Test func `another version is told apart from nonsense`() throws {
        var packet = try Request.reload.encoded()
        packet[3] = 2
        #expect(throws: MalformedMessage("protocol version 2, this side speaks 1: use vmctl and vmd of one release")) {
            try Request(packet: packet, descriptorCount: 0)
        }
    }
}

/// Whatever arrives is either refused, or is exactly the message that this side would have written.
@Suite("Hostile messages") struct HostileMessageTests {
    private func check<Kind: Message & Equatable>(_ type: Kind.Type, _ bytes: [UInt8], _ descriptors: Int) -> Bool {
        guard let message = try? Kind(packet: bytes, descriptorCount: descriptors) else { return false }
        let again = try? message.encoded()
        #expect(again == bytes, "\(message)")
        return true
    }

    @Test func `random bytes are refused`() {
        var random = SplitMix64(seed: 3)
        for _ in 0..<20_000 {
            let count = Int.random(in: 0...64, using: &random)
            let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
            #expect(!check(Request.self, bytes, 0))
            #expect(!check(Response.self, bytes, 0))
        }
    }

    @Test func `random fields behind a good header never trap`() {
        var random = SplitMix64(seed: 4)
        var accepted = 0
        for _ in 0..<40_000 {
            let kind = UInt8.random(in: 0...18, using: &random)
            let descriptors = Int.random(in: 0...2, using: &random)
            var bytes: [UInt8] = [0x76, 0x6D, 0x64, 1, kind, 0, UInt8(descriptors), 0]
            // Small numbers are counts and flags more often.
            bytes += (0..<Int.random(in: 0...24, using: &random)).map { _ in
                random.chance() ? UInt8.random(in: 0...3, using: &random) : UInt8.random(in: 0...255, using: &random)
            }
            if check(Request.self, bytes, descriptors) { accepted += 1 }
            if check(Response.self, bytes, descriptors) { accepted += 1 }
        }
        // Some are messages, or this test would test nothing.
        #expect(accepted > 100)
    }

    @Test func `good messages with bytes changed are never taken for others`() throws {
        var random = SplitMix64(seed: 5)
        var accepted = 0
        for round in 0..<20_000 {
            let isRequest = random.chance()
            let good =
                isRequest
                ? try random.request(kind: round % SplitMix64.requestKinds.count + 1).encoded()
                : try random.response(kind: round % SplitMix64.responseKinds.count + 1).encoded()
            var bytes = good
            for _ in 0..<Int.random(in: 1...4, using: &random) where !bytes.isEmpty {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<5, using: &random) {
                case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes[index] ^= 1 << UInt8.random(in: 0...7, using: &random)
                case 2: bytes.remove(at: index)
                case 3: bytes.insert(UInt8.random(in: 0...255, using: &random), at: index)
                default: bytes.removeLast(bytes.count - index)
                }
            }
            let descriptors = bytes.count > 6 ? Int(bytes[6]) : 0
            if check(Request.self, bytes, descriptors) { accepted += 1 }
            if check(Response.self, bytes, descriptors) { accepted += 1 }
        }
        #expect(accepted > 100)
    }

    @Test func `packets beyond the limit are refused`() throws {
        let bytes = try Request.reload.encoded() + [UInt8](repeating: 0, count: Packet.longest)
        #expect(throws: MalformedMessage.self) { try Request(packet: bytes, descriptorCount: 0) }
    }

    @Test func `text with a zero byte or a broken letter is refused`() {
        for byte: UInt8 in [0, 0xFF, 0xC3] {
            let bytes: [UInt8] = [0x76, 0x6D, 0x64, 1, 8, 0, 0, 0, 1, 0, byte]
            #expect(throws: MalformedMessage("text that is not UTF-8")) { try Request(packet: bytes, descriptorCount: 0) }
        }
    }
}
