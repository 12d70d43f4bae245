/// What one statement says about others: names that come twice or not at all, and what two machines cannot share.
struct Checks {
    private(set) var configuration: Configuration
    var diagnostics: DiagnosticList
    private let templates: [String: MachineDefinition]
    private var switchNames: Set<String>

    /// - Parameter known: what is configured already, which machines may refer to.
    init(_ tree: SyntaxTree, known: Configuration, _ diagnostics: DiagnosticList) {
        templates = Dictionary(known.machines.map { ($0.name.value, $0) }) { first, _ in first }
        self.diagnostics = diagnostics
        configuration = Configuration(settings: tree.settings)
        switchNames = Set(known.switches.map(\.name.value))
        addSwitches(tree.switches)
        let statements = withoutRepeated(tree.machines, "vm", \.name)
        for statement in statements { checkSwitches(statement) }
        addMachines(statements)
        for machine in configuration.machines { checkBoot(machine) }
        checkShared()
    }

    /// As on OpenBSD the first of two counts; that is said.
    private mutating func withoutRepeated<S>(_ statements: [S], _ kind: String, _ name: (S) -> Located<String>) -> [S] {
        var places: [String: SourceLocation] = [:]
        return statements.filter { statement in
            let name = name(statement)
            guard let first = places[name.value] else {
                places[name.value] = name.location
                return true
            }
            diagnostics.warning("\(kind) \(quoteForMessage(name.value)) is defined at \(first) already: this one is skipped", at: name.location)
            return false
        }
    }

    private mutating func addSwitches(_ statements: [SwitchStatement]) {
        for statement in withoutRepeated(statements, "switch", \.name) {
            switchNames.insert(statement.name.value)
            guard let interface = statement.interface else { continue }
            configuration.switches.append(
                SwitchDefinition(
                    name: statement.name, isEnabled: statement.isEnabled, isUp: statement.isUp, interface: interface, link: statement.link))
        }
    }

    private mutating func checkSwitches(_ statement: MachineStatement) {
        for case let name? in statement.options.interfaces.map(\.networkSwitch) where !switchNames.contains(name.value) {
            let nearest = Keywords.nearest(to: name.value, among: switchNames)
            diagnostics.error("switch \(quoteForMessage(name.value)) not found\(didYouMean(nearest))", at: name.location)
        }
    }

    // MARK: Instances

    /// Templates are made before their instances, wherever they stand. Without recursion: a hostile file may have a
    /// hundred thousand instances of each other.
    private mutating func addMachines(_ statements: [MachineStatement]) {
        let indices = Dictionary(statements.enumerated().map { ($1.name.value, $0) }) { first, _ in first }
        var made: [MachineDefinition?] = Array(repeating: nil, count: statements.count)
        var isDone = Array(repeating: false, count: statements.count)
        for start in statements.indices {
            // The way to a template that exists, or to a machine that is none.
            var path: [Int] = []
            var onPath: Set<Int> = []
            var next: Int? = start
            while let index = next, !isDone[index] {
                guard onPath.insert(index).inserted else {
                    reportCycle(path.drop { $0 != index }.map { statements[$0].name })
                    for index in path { isDone[index] = true }
                    path = []
                    break
                }
                path.append(index)
                next = statements[index].template.flatMap { indices[$0.value] }
            }
            for index in path.reversed() {
                isDone[index] = true
                let statement = statements[index]
                guard let name = statement.template else {
                    made[index] = MachineDefinition(name: statement.name, statement.options)
                    continue
                }
                if let template = indices[name.value] {
                    // Without one it has an error of its own.
                    made[index] = made[template].map { makeInstance(statement, of: $0, name) }
                } else if let template = templates[name.value] {
                    made[index] = makeInstance(statement, of: template, name)
                } else {
                    let nearest = Keywords.nearest(to: name.value, among: indices.keys) ?? Keywords.nearest(to: name.value, among: templates.keys)
                    diagnostics.error(
                        "vm \(quoteForMessage(name.value)), which \(quoteForMessage(statement.name.value)) is an instance of, not found\(didYouMean(nearest))",
                        at: name.location)
                }
            }
            if diagnostics.isFull { break }
        }
        configuration.machines = made.compactMap { $0 }
    }

    private mutating func reportCycle(_ names: [Located<String>]) {
        guard let first = names.first else { return }
        let shown = names.prefix(8).map { quoteForMessage($0.value) } + (names.count > 8 ? ["..."] : []) + [quoteForMessage(first.value)]
        diagnostics.error("instances of each other: \(shown.joined(separator: " is an instance of "))", at: first.location)
    }

    private mutating func makeInstance(
        _ statement: MachineStatement, of template: MachineDefinition, _ name: Located<String>
    ) -> MachineDefinition {
        let (instance, problems) = template.makeInstance(named: statement.name, template: name, statement.options)
        for problem in problems { diagnostics.error(problem.value, at: problem.location) }
        return instance
    }

    // MARK: Sense

    private mutating func checkBoot(_ machine: MachineDefinition) {
        if machine.boot == nil {
            for (option, value) in [("initrd", machine.initrd), ("cmdline", machine.commandLine)] {
                if let value { diagnostics.warning("\(option) has no effect without boot", at: value.location) }
            }
        }
        if machine.isEnabled, machine.boot == nil, machine.disks.isEmpty, machine.cdrom == nil, machine.bootDevice != .net {
            diagnostics.warning("vm \(quoteForMessage(machine.name.value)) has nothing to boot: no boot, disk or cdrom", at: machine.name.location)
        }
    }

    /// Two machines that never run together may share, so these are warnings.
    private mutating func checkShared() {
        var places: [String: SourceLocation] = [:]
        for machine in configuration.machines {
            for disk in machine.disks { checkShared("disk", FilePath.normalized(disk.path.value), at: disk.path.location, &places) }
            for interface in machine.interfaces {
                if let tap = interface.tap { checkShared("interface", tap.value, at: tap.location, &places) }
                if let address = interface.link.address { checkShared("lladdr", address.value.description, at: address.location, &places) }
            }
        }
    }

    private mutating func checkShared(_ kind: String, _ value: String, at place: SourceLocation, _ places: inout [String: SourceLocation]) {
        let key = "\(kind) \(value)"
        if let first = places[key] {
            diagnostics.warning("\(kind) \(quoteForMessage(value)) is used at \(first) too: the two cannot run at once", at: place)
        } else {
            places[key] = place
        }
    }
}
