import TestSupport
import Testing

@testable import Machine

@Suite("Memory map") struct MemoryMapTests {
    @Test func `small guest has one range of RAM and the ACPI area`() throws {
        let map = try MemoryMap(byteCount: 64 << 20)
        #expect(map.lowEnd == 64 << 20)
        #expect(map.ranges.map(\.base) == [0, 0xEFFF_0000])
        #expect(map.ranges.map(\.byteCount) == [64 << 20, 64 << 10])
    }

    @Test func `RAM beyond the PCI hole continues at 4 GB`() throws {
        let map = try MemoryMap(byteCount: 8 << 30)
        #expect(map.lowEnd == 0xEFFF_0000)
        #expect(map.ranges.map(\.base) == [0, 0xEFFF_0000, 1 << 32])
        #expect(map.lowEnd + map.highByteCount == 8 << 30)
        #expect(map.entries.last == .init(base: 1 << 32, byteCount: (8 << 30) - 0xEFFF_0000, kind: .ram))
    }

    @Test(arguments: [16 << 20, 3839 << 20, 3840 << 20, 4 << 30, 128 << 30] as [UInt64])
    func `entries are in order, do not overlap, and offer what was asked for`(byteCount: UInt64) throws {
        let entries = try MemoryMap(byteCount: byteCount).entries
        for (entry, next) in zip(entries, entries.dropFirst()) {
            #expect(entry.base + entry.byteCount <= next.base)
        }
        let offered = entries.filter { $0.kind == .ram }.reduce(0) { $0 + $1.byteCount }
        #expect(offered == byteCount - (448 << 10))
    }

    @Test(arguments: [
        (0, "memory size 0 bytes is too small: give at least 16M"),
        ((16 << 20) - 1, "memory size 15.9M is too small: give at least 16M"),
        ((128 << 30) + (1 << 20), "memory size 128.0G is too large: the limit is 128G"),
        (.max, "memory size 16777215.9T is too large: the limit is 128G"),
        ((16 << 20) + 1, "memory size 16777217 is not a whole number of megabytes"),
    ] as [(UInt64, String)])
    func `size out of bounds is refused with the bound`(byteCount: UInt64, expected: String) {
        #expect(message { _ = try MemoryMap(byteCount: byteCount) } == expected)
    }
}

@Suite("Restart limiter") struct RestartLimiterTests {
    @Test func `fourth restart within six seconds is one too many`() {
        var limiter = RestartLimiter()
        let answers = [0, 2, 4, 6].map { limiter.allowsRestart(at: $0 * 1_000_000_000) }
        #expect(answers == [true, true, true, false])
    }

    @Test func `restarts further apart go on for ever`() {
        var limiter = RestartLimiter()
        let answers = (0..<100).map { limiter.allowsRestart(at: $0 * 2_000_000_001) }
        #expect(answers.allSatisfy { $0 })
    }
}

@Suite("Escapes") struct EscapeParserTests {
    private func parse(_ texts: String...) -> [EscapeParser.Action] {
        var parser = EscapeParser()
        return texts.flatMap { parser.parse(Array($0.utf8)) }
    }
    private func send(_ text: String) -> EscapeParser.Action { .send(Array(text.utf8)) }

    @Test func `tilde and period leave at the start of a session and of a line`() {
        #expect(parse("~.") == [.leave])
        #expect(parse("ls\r~.") == [send("ls\r"), .leave])
        #expect(parse("ls\n~.") == [send("ls\n"), .leave])
    }

    @Test func `tilde in the middle of a line is the guest's`() {
        #expect(parse("a~.b~~") == [send("a~.b~~")])
    }

    @Test func `terminal's answer to where the cursor is leaves the line at its start`() {
        #expect(parse("ls\r", "\u{1B}[12;8R", "~.") == [send("ls\r"), send("\u{1B}[12;8R"), .leave])
        #expect(parse("\u{1B}[A~.") == [send("\u{1B}[A~.")])
    }

    @Test func `command is recognised over several reads`() {
        #expect(parse("x\r", "~", ".") == [send("x\r"), .leave])
    }

    @Test func `two tildes send one, which starts no command`() {
        #expect(parse("~~.") == [send("~.")])
    }

    @Test func `break and help leave the line at its start`() {
        #expect(parse("~#~?~.") == [.sendBreak, .help, .leave])
    }

    @Test func `tilde before no command goes to the guest with what follows`() {
        #expect(parse("~x~.\r~.") == [send("~x~.\r"), .leave])
        #expect(parse("~\r~.") == [send("~\r"), .leave])
    }

    @Test func `tilde alone waits for what follows`() {
        #expect(parse("~") == [])
    }

    @Test func `help lists every command`() {
        for command in ["~.", "~#", "~~", "~?"] { #expect(EscapeParser.help(leaving: "leave").contains(command)) }
    }
}

@Suite("Byte search") struct ByteSearchTests {
    @Test func `finds what the standard library finds`() {
        var random = SplitMix64(seed: 5)
        var found = 0
        for _ in 0..<2000 {
            // Few different bytes, so that much begins and does not go on.
            let whole = (0..<random.next() % 40).map { _ in UInt8(random.next() % 2) }
            let part = (0..<random.next() % 8).map { _ in UInt8(random.next() % 2) }
            let expected = part.isEmpty || whole.firstRange(of: part) != nil
            #expect(whole.holds(part[...]) == expected, "\(part) in \(whole)")
            if expected { found += 1 }
        }
        #expect((500..<1900).contains(found))
        #expect([1, 2, 3, 4].holds([9, 2, 3, 9][1...2]))
    }
}
