import Testing
import VMConfig

@Suite("Words, strings and macros") struct LexerTests {
    @Test(arguments: [
        (#""a b""#, "a b"), (#"'a b'"#, "a b"), (#""a\"b""#, "a\"b"), (#"'a\'b'"#, "a'b"), (#""it's""#, "it's"),
        (#""a\ b""#, "a b"), (#""a\nb""#, #"a\nb"#), (#""a\\""#, #"a\"#), ("/a#comment", "/a"), ("\"/a#b\"", "/a#b"),
        ("\"/a\" \"b\"", "/a b"), ("/über", "/"), ("\"/über\"", "/über"), ("a\\\nb", "ab"), ("\\\n  \"/x\"", "/x"),
        ("\\\r\n\"/x\"", "/x"), (":a", ":a"), ("_a", "_a"), ("a-b.c@d~e", "a-b.c@d~e"), ("\"a\\\nb\"", "ab"), ("7up", "7up"),
    ])
    func `text is read as written`(source: String, expected: String) throws {
        let result = parse("vm a {\ncdrom \(source)\n}\n")
        if source == "/über" {
            #expect(result.errors.first?.message.contains("'ü'") == true)
        } else {
            #expect(result.configuration?.machines.first?.cdrom?.value == expected, "\(result.diagnostics)")
        }
    }

    @Test func `comments end with the line and a backslash goes on with them`() throws {
        let text = "# vm b {\n# goes on \\\nvm c { disable }\nvm a { disk /x } # end\n"
        #expect(try configuration(text).machines.map(\.name.value) == ["a"])
    }

    @Test func `a newline in a string is dropped and warned of`() {
        let result = parse("vm a {\n cdrom \"/a\n/b\"\n}\n")
        #expect(result.configuration?.machines[0].cdrom?.value == "/a/b")
        #expect(result.warnings.map(\.description) == ["vm.conf:2: warning: string goes on to line 3; is a closing quote missing?"])
    }

    @Test func `lines may end as in Windows, and the file begin with a mark`() throws {
        #expect(try configuration("\u{FEFF}vm a {\r\n disk /x\r\n}\r\n").machines.count == 1)
    }

    @Test func `macros stand for words anywhere but in quotes`() throws {
        let text = """
            image = "/vm/web.qcow2"
            nic = "local interface"
            size = 1G
            dir = /vm
            vm a {
                memory $size
                disk $image format qcow2
                disk $dir/$name.img
                disk "/$dir"
                $nic
            }
            """
        let machine = try #require(configuration(text, macros: ["name": "x y"]).machines.first)
        #expect(machine.memoryByteCount == 1 << 30)
        #expect(machine.disks.map(\.path.value) == ["/vm/web.qcow2", "/vm/x y.img", "/$dir"])
        #expect(machine.interfaces.map(\.isLocal) == [true])
    }

    @Test func `the last definition counts and the command line wins`() throws {
        let text = "a = /1\nvm x { disk $a }\na = /2\nvm y { disk $a }\n"
        #expect(try configuration(text).machines.map { $0.disks[0].path.value } == ["/1", "/2"])
        #expect(parse(text, macros: ["a": "/3"]).configuration?.machines.map { $0.disks[0].path.value } == ["/3", "/3"])
    }

    @Test(arguments: [
        ("$nothing\n", "1: macro 'nothing' not defined"),
        ("word = x\ncdrom = $wrod\n", "2: macro 'wrod' not defined; did you mean 'word'?"),
        ("\"a b\" = x\n", "1: macro name cannot contain whitespace: 'a b'"),
        ("a-b = x\n", "1: invalid macro name 'a-b': use letters, digits and '_'"),
        ("x =\n", "1: syntax error: expected the value of macro 'x', found end of line"),
        ("a = '$a'\nvm b { cdrom $a }\n", "2: '$' in the text of a macro: macros do not expand there"),
        ("\n$ x\n", "2: syntax error: expected the name of a macro behind '$'"),
        ("vm a {\ncdrom \"/x\nmemory 1G\n}\n", "2: unterminated string: the closing \" is missing"),
        ("vm a {\ninterfaces 99999999999999999999999999\n}\n", "2: number too large: '99999999999999999999999999'"),
        ("vm a {\nmemory -5M\n}\n", "2: syntax error: unexpected '-'; write words that begin with it in quotes"),
        ("vm a {\ncdrom ./x.iso\n}\n", "2: syntax error: unexpected character '.'; write text that holds it in quotes (\")"),
        ("vm a {\ncdrom \"a\u{1}b\"\n}\n", "2: control character in a string"),
        ("x = '\"a'\nvm a {\ncdrom $x\n}\n", "3: unterminated string: the closing \" is missing"),
    ])
    func `what is wrong is said`(text: String, expected: String) { #expect(errors(text).first == expected) }

    @Test func `a macro that nothing uses is warned of`() {
        #expect(warnings("\na = b\n") == ["2: macro 'a' not used"])
        #expect(parse("", macros: ["a": "b"]).diagnostics == [])
    }

    @Test(arguments: [("a=b", "a", "b"), ("a=", "a", ""), ("a", nil, nil), ("=b", nil, nil), ("a=b=c", nil, nil), ("a b=c", nil, nil)] as [(String, String?, String?)])
    func `a definition of the command line splits at the last equals sign`(argument: String, name: String?, value: String?) {
        let definition = MacroDefinition(argument: argument)
        #expect(definition?.name == name)
        #expect(definition?.value == value)
    }
}
