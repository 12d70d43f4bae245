import TestSupport
import Testing
import VMConfig

@Suite("Hostile files") struct HostileTests {
    @Test func `files are found from the folder of the file that includes them`() throws {
        let files = ["/etc/vm/a.conf": "include \"b/c.conf\"\ninclude \"/abs.conf\"\n", "/etc/vm/b/c.conf": "vm c { disk /c }\n", "/abs.conf": "vm d { disk /d }\n"]
        let result = Configuration.parse(path: "/etc/vm.conf") { (path, _) throws(FileReadError) in
            if path == "/etc/vm.conf" { return Array("include \"vm/a.conf\"\nvm e { disk /e }\n".utf8) }
            guard let text = files[path] else { throw FileReadError("no \(path)") }
            return Array(text.utf8)
        }
        #expect(result.diagnostics == [])
        #expect(result.configuration?.machines.map { $0.name.location.description } == ["/etc/vm/b/c.conf:1", "/abs.conf:1", "/etc/vm.conf:2"])
    }

    @Test func `a file that cannot be read is named with its line, and the rest is read`() {
        #expect(errors("include \"x\"\ninclude \"y\"\ninclude\nvm a { bad }\n").prefix(3) == [
            "1: failed to include file x: No such file or directory", "2: failed to include file y: No such file or directory",
            "3: syntax error: expected the path of a file, found end of line",
        ])
    }

    @Test func `a cycle of files is named`() {
        let result = parse("\ninclude \"a\"\n", files: ["a": "include \"b\"\n", "b": "#\ninclude \"./a\"\n"])
        #expect(result.errors.map(\.description) == ["b:2: failed to include file ./a: files include each other: a includes b includes ./a"])
        #expect(parse("include \"vm.conf\"\n").errors.map(\.description) == [
            "vm.conf:1: failed to include file vm.conf: files include each other: vm.conf includes vm.conf"
        ])
    }

    @Test func `files include each other to a depth`() {
        let files = Dictionary(uniqueKeysWithValues: (0..<40).map { ("\($0)", "include \"\($0 + 1)\"\n") })
        #expect(parse("include \"0\"\n", files: files).errors.map(\.description) == ["14:1: failed to include file 15: more than 16 files include each other"])
    }

    @Test func `there are only so many files and bytes`() {
        let files = Dictionary(uniqueKeysWithValues: (0..<12).map { ("\($0)", "include \"\($0 + 1)\"\ninclude \"\($0 + 1)\"\n") } + [("12", "")])
        let result = parse("include \"0\"\n", files: files)
        #expect(result.errors.last?.message.contains("more than 256 files") == true || result.errors.last?.message.contains("too many errors") == true)
        var limits = ParseLimits()
        limits.fileByteCount = 100
        limits.totalByteCount = 150
        let long = String(repeating: "#", count: 101)
        #expect(parse(long, limits: limits).errors.map(\.description) == ["vm.conf: file too large: 101 bytes, and at most 100 are read"])
        let twice = parse("include \"a\"\ninclude \"a\"\n", files: ["a": String(long.dropLast(10))], limits: limits)
        #expect(twice.errors.map(\.description) == ["vm.conf:2: failed to include file a: file too large: 91 bytes, and at most 35 are read"])
    }

    @Test func `NUL bytes and what is not UTF-8 are errors with their lines`() {
        let result = parse(Array("vm a { disk /x }\n# ".utf8) + [0xFF, 10, 0] + Array("\n#\u{0}".utf8) + [0xC0, 0x80])
        #expect(result.errors.map(\.description) == ["vm.conf:2: invalid UTF-8", "vm.conf:3: NUL byte: this is no text file", "vm.conf:4: NUL byte: this is no text file", "vm.conf:4: invalid UTF-8"])
    }

    @Test(arguments: ["x", "\"", "5", "{", "}", "$", "#", " ", "\\", ",", "é", "\u{1}", "a=", "$x", "vm a {", "include \"x\" "])
    func `a megabyte on one line is read in bounded time`(piece: String) {
        let text = String(repeating: piece, count: (1 << 20) / piece.utf8.count)
        let start = ContinuousClock.now
        let result = parse("x = y\nvm a {\n" + text + "\n}\n")
        #expect(ContinuousClock.now - start < .seconds(20))
        #expect(result.diagnostics.count <= 1001)
        #expect([" ", "#"].contains(piece) == (result.errors == [] || result.errors.allSatisfy { $0.message.contains("is empty") }))
    }

    @Test func `macros do not grow without bound`() {
        var text = "a0 = xxxxxxxxxxxxxxxx\n"
        for index in 1...40 { text += "a\(index) = $a\(index - 1) $a\(index - 1)\n" }
        #expect(errors(text).first == "10: value of macro 'a9' too long: the limit is 8191 bytes")
        let long = "a = " + String(repeating: "x", count: 8000) + "\n" + String(repeating: "b = $a\n", count: 1000)
        #expect(errors(long).first == "526: macros expand to too much text", "\(errors(long).prefix(2))")
    }

    @Test func `errors end at a limit`() {
        let result = parse(String(repeating: "x\n", count: 100_000))
        #expect(result.diagnostics.count == 1001)
        #expect(result.diagnostics.last?.message == "too many errors and warnings: the rest is not read")
    }

    @Test func `ten thousand instances of each other are no trouble`() {
        let count = 10_000
        let chain = (0..<count).map { "vm v\($0) instance v\($0 + 1) {}\n" }.joined()
        #expect(parse(chain + "vm v\(count) {\nboot /k\n}\n").configuration?.machines.count == count + 1)
        #expect(parse(chain + "vm v\(count) instance v0 {}\n").errors.map(\.location.line) == [1])
        let dangling = parse((0..<count).map { "vm v\($0) instance w\($0) {}\n" }.joined())
        #expect(dangling.errors.count == 1001)
    }

    @Test func `templates do not pile up what they allow`() {
        let chain = "vm v0 { boot /k }\n" + (1...200).map { "vm v\($0) instance v\($0 - 1) {\nallow base /\($0) }\n" }.joined()
        let errors = parse(chain).errors
        #expect(errors.first?.description == "vm.conf:131: too many bases: a machine has at most 64, its template's included")
        #expect(errors.count == 200 - 64)
        let flat = parse("vm a {\nboot /k\n" + (1...65).map { "allow base /\($0)\n" }.joined() + "}\n").errors
        #expect(flat.map(\.description) == ["vm.conf:67: too many bases: a machine has at most 64"])
    }

    @Test func `there are only so many machines and switches`() {
        var limits = ParseLimits()
        limits.definitionCount = 1
        let text = "vm a { disk /a }\nswitch a { interface a }\nvm b { disk /b }\nswitch b { interface b }\n"
        #expect(parse(text, limits: limits).errors.map(\.description) == ["vm.conf:3: too many machines: at most 1 are read", "vm.conf:4: too many switches: at most 1 are read"])
    }

    // MARK: Random files

    static let words = [
        "vm", "switch", "include", "local", "socket", "owner", "staggered", "start", "parallel", "delay", "agentx", "instance", "allow", "base",
        "memory", "1G", "512M", "cpus", "1", "2", "disk", "\"/x\"", "/y", "format", "raw", "qcow2", "boot", "device", "cdrom", "net", "interface",
        "interfaces", "{", "}", "{", "}", "\n", "\n", "\n", ",", "=", "(", "!", "a", "b", "lan", "$a", "$zz", "\"", "'", "\\", "\\\n", "#", "up", "down",
        "lladdr", "locked", "00:11:22:33:44:55", "rdomain", "group", "enable", "disable", "prefix", "inet6", "10.0.0.0/8", "fd00::/64", "-1",
        "999999999999999999999", "\u{0}", "\u{FEFF}", "ü", "engine", "kvm", "cpu", "host", "initrd", "cmdline", "\"vm.conf\"", "\"f\"", "sev",
    ]

    @Test func `random words never trap or hang`() {
        var random = SplitMix64(seed: 1)
        let start = ContinuousClock.now
        for _ in 0..<1500 {
            let text = (0..<Int.random(in: 1...80, using: &random)).map { _ in Self.words.randomElement(using: &random) ?? "" }
                .joined(separator: Bool.random(using: &random) ? " " : "")
            let result = parse(text, files: ["f": "vm f { disk /f }\na = b\n"])
            #expect((result.configuration == nil) == !result.errors.isEmpty)
        }
        #expect(ContinuousClock.now - start < .seconds(60))
    }

    @Test func `good files with bytes changed never trap or hang`() {
        var random = SplitMix64(seed: 2)
        let good = Array((InstanceTests.template + "vm one instance base { disk /one.img }\nlocal inet6 prefix fd00::/64\nsocket owner :vmm\nx = 'y z'\ninclude \"f\"\n").utf8)
        for _ in 0..<1500 {
            var bytes = good
            for _ in 0..<Int.random(in: 1...6, using: &random) {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<4, using: &random) {
                case 0: bytes[index] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.remove(at: index)
                case 2: bytes.insert("{}\"'\n\\$#=,".utf8.randomElement(using: &random) ?? 0, at: index)
                default: bytes.replaceSubrange(index..<min(index + 20, bytes.count), with: [])
                }
            }
            let result = parse(bytes, files: ["f": Array("vm f { disk /f }\n".utf8)])
            #expect((result.configuration == nil) == !result.errors.isEmpty)
            // What is accepted is a configuration like any other.
            if let configuration = result.configuration { #expect(parse(configuration.description).configuration == configuration) }
        }
    }
}
