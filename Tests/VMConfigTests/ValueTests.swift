import Testing
import VMConfig

@Suite("Sizes") struct ByteSizeTests {
    @Test(arguments: [
        ("0", 0), ("4096", 4096), ("16K", 16 << 10), ("512M", 512 << 20), ("512m", 512 << 20), ("1G", 1 << 30), ("2t", 2 << 40),
        ("18446744073709551615", .max), ("17179869183G", 17_179_869_183 << 30),
    ] as [(String, UInt64)])
    func `suffixes are powers of 1024`(text: String, expected: UInt64) {
        #expect(ByteSize.parse(text) == expected)
        #expect(ByteSize.parse(ByteSize.describe(expected)) == expected)
    }

    @Test(arguments: [
        "", "M", "-1", "+1", "1.5G", "1 G", " 1G", "1GB", "1P", "0x10", "18446744073709551616", "17179869184G", "٣M", "5ß", "5ﬁ",
    ])
    func `what is no size is refused`(text: String) { #expect(ByteSize.parse(text) == nil) }

    @Test(arguments: [(0, "0"), (1000, "1000"), (1024, "1K"), (512 << 20, "512M"), (1536 << 20, "1536M"), (2 << 40, "2T"), (1 << 60, "1048576T")] as [(UInt64, String)])
    func `the largest suffix that loses nothing is shown`(size: UInt64, expected: String) { #expect(ByteSize.describe(size) == expected) }
}

@Suite("Values") struct ValueTests {
    @Test(arguments: [
        ("1:2:3:4:5:6:7:8/64", "1:2:3:4::/64"), ("fd00::/8", "fd00::/8"), ("::1/64", "::/64"), ("2001:db8:0:1:0:0:0:1/64", "2001:db8:0:1::/64"),
        ("0:0:1:0:0:0:0:0/48", "0:0:1::/48"), ("FD00:0:0:A::10.0.0.1/64", "fd00:0:0:a::/64"), ("1::/1", "::/1"),
    ])
    func `IPv6 networks are cut to their length and written short`(text: String, expected: String) throws {
        #expect(try configuration("local inet6 prefix \"\(text)\"\n").settings.description == "local inet6 prefix \"\(expected)\"\n")
    }

    @Test func `names for the command line are checked as in the file`() {
        #expect(Names.problem(inMachineName: "web-1.example_org") == nil)
        #expect(Names.problem(inMachineName: ".x") != nil)
        #expect(Names.problem(inMachineName: String(repeating: "a", count: 63)) == nil)
        #expect(Names.isInterfaceName("br-lan.5"))
        #expect(!Names.isInterfaceName(".."))
        #expect(!Names.isGroupName(""))
    }
}
