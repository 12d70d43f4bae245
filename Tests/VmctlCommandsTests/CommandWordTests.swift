import Testing

@testable import VmctlCommands

@Suite("Commands' names") struct CommandWordTests {
    @Test(arguments: [
        ("p", "pause"), ("w", "wait"), ("u", "unpause"), ("sh", "status"), ("show", "status"), ("sto", "stop"), ("star", "start"),
        ("stat", "status"), ("co", "console"), ("cd", "cdrom"), ("cr", "create"), ("sn", "snapshot"), ("i", "image"), ("e", "export"), ("rollb", "rollback"),
        ("rel", "reload"), ("res", "reset"), ("ru", "run"), ("loa", "load"), ("log", "log"),
        ("start", "start"), ("status", "status"),
    ])
    func `beginning that only one has means it`(word: String, name: String) throws {
        #expect(CommandWord.name(of: try CommandWord.find(word)) == name)
    }

    /// To look for one of the parser's own takes it longer than many a command.
    @Test func `parser's own options are none of ours`() {
        for command in CommandWord.commands {
            let call = Call([CommandWord.name(of: command), "--generate-completion-script"])
            #expect(call.status == 2 && call.output.isEmpty, "\(call.output)")
        }
    }

    @Test(arguments: [
        ("st", "ambiguous argument: st: start, status or stop"), ("sta", "ambiguous argument: sta: start or status"),
        ("re", "ambiguous argument: re: reload or reset"), ("l", "ambiguous argument: l: load or log"),
        ("s", "ambiguous argument: s: show, snapshot, start, status or stop"), ("c", "ambiguous argument: c: cdrom, console or create"),
        ("ro", "ambiguous argument: ro: rollback or rollforward"),
        ("x", "unknown argument: x: the commands are "), ("statusx", "unknown argument: statusx: the commands are "),
        ("STOP", "unknown argument: STOP: "), ("", "ambiguous argument: : "),
    ])
    func `any other word is told`(word: String, text: String) {
        let call = Call([word])
        #expect(call.status == 2)
        #expect(call.complaint.hasPrefix("vmctl: \(text)"), "\(call.error)")
        #expect(call.error.hasSuffix("usage:\tvmctl [-v] [-s socket] command [arg ...]\n"))
    }

    @Test func `options of all commands stand in front too`() throws {
        guard case .command(let command, let rest) = try CommandWord.read(["-v", "-s", "/x", "sto", "-f", "a"]) else {
            Issue.record("no command")
            return
        }
        #expect(CommandWord.name(of: command) == "stop")
        #expect(rest == ["-s", "/x", "-v", "-f", "a"])
        guard case .command(let run, let others) = try CommandWord.read(["-v", "-s/x", "run", "-b", "k"]) else { return }
        #expect(CommandWord.name(of: run) == "run" && others == ["-v", "-b", "k"])
    }

    @Test(arguments: [[], ["-v"], ["-s"], ["-x", "status"], ["--frob"], ["-"]])
    func `wrong beginnings are told with the usage`(arguments: [String]) {
        let call = Call(arguments)
        #expect(call.status == 2 && call.output.isEmpty)
        #expect(call.complaint.hasPrefix("vmctl: ") && call.error.contains("\nusage:\t"))
    }

    @Test(arguments: [["--help"], ["-h"], ["help"], ["help", "stat"], ["status", "--help"], ["console", "-h"]])
    func `help goes to standard output`(arguments: [String]) {
        let call = Call(arguments)
        #expect(call.status == 0 && call.error.isEmpty)
        #expect(call.output.contains("USAGE: vmctl [-v]"))
    }
}
