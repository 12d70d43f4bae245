import ControlProtocol

/// The table of `vmctl status`: OpenBSD's columns at OpenBSD's widths.
enum StatusTable {
    static let header = row(["ID", "PID", "VCPUS", "MAXMEM", "CURMEM", "TTY", "OWNER", "STATE", "NAME"])

    static func row(_ machine: MachineStatus) -> String {
        row([
            "\(machine.id)",
            machine.pid.map { "\($0)" } ?? "-",
            "\(machine.cpus)",
            ScaledSize.describe(machine.maxMemory),
            machine.currentMemory.map(ScaledSize.describe) ?? "-",
            machine.tty.map(shortPath) ?? "-",
            shortOwner(machine.owner),
            machine.state.word,
            machine.name,
        ])
    }

    private static let widths = [5, 5, 5, 7, 7, 7, 12, 8]

    private static func row(_ fields: [String]) -> String {
        var line = ""
        for (index, field) in fields.enumerated() {
            if index < widths.count { line += String(repeating: " ", count: max(0, widths[index] - field.count)) }
            line += index + 1 < fields.count ? field + " " : field
        }
        return line
    }

    /// A terminal as ps(1) and who(1) name it.
    private static func shortPath(_ path: String) -> String {
        path.hasPrefix("/dev/") ? String(path.dropFirst("/dev/".count)) : path
    }

    /// The user's part is cut at 16 characters.
    private static func shortOwner(_ owner: String) -> String {
        guard let colon = owner.firstIndex(of: ":") else { return String(owner.prefix(16)) }
        return "\(owner[..<colon].prefix(16))\(owner[colon...])"
    }
}

extension MachineStatus.State {
    /// For people and programs.
    var word: String { "\(self)" }
}
