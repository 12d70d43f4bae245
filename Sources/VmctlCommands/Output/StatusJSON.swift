import ControlProtocol

/// `vmctl status -j`: an array of objects that have every field always, null where there is nothing to say. vmctl(8) has
/// the table of the fields; they are only ever added to.
enum StatusJSON {
    static func describe(_ machines: [MachineStatus]) -> String {
        if machines.isEmpty { return "[]\n" }
        return "[\n  " + machines.map(object).joined(separator: ",\n  ") + "\n]\n"
    }

    private static func object(_ machine: MachineStatus) -> String {
        let fields: [(String, String)] = [
            ("id", number(machine.id)),
            ("name", string(machine.name)),
            ("state", string(machine.state.word)),
            ("pid", number(machine.pid)),
            ("vcpus", number(machine.cpus)),
            ("max_memory", number(machine.maxMemory)),
            ("current_memory", number(machine.currentMemory)),
            ("tty", string(machine.tty)),
            ("owner", string(machine.owner)),
            ("engine", string(machine.engine)),
            ("started", number(machine.startTime)),
            ("restarts", number(machine.restarts)),
            ("last_event", string(machine.lastEvent)),
            ("console_holder", string(machine.consoleHolder)),
        ]
        return "{" + fields.map { "\(string($0.0)): \($0.1)" }.joined(separator: ", ") + "}"
    }

    private static func number<Number: UnsignedInteger>(_ value: Number?) -> String { value.map { "\($0)" } ?? "null" }

    /// RFC 8259, section 7.
    static func string(_ value: String?) -> String {
        guard let value else { return "null" }
        var text = "\""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\"": text += "\\\""
            case "\\": text += "\\\\"
            case "\n": text += "\\n"
            case "\t": text += "\\t"
            case _ where scalar.value < 0x20 || scalar.value == 0x7F:
                let digits = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }
}
