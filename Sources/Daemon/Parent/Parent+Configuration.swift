import ControlProtocol
import Linux
import VMConfig

/// Reading the configuration again, and more of it.
extension Parent {
    /// Takes a configuration's word for what is to be: machines that run stay as they are, and take what is new at
    /// their next start; those that are in it no more are forgotten when they stop.
    func apply(_ configuration: DaemonConfiguration, isAddition: Bool) {
        for warning in configuration.warnings { log.warning(warning) }
        self.configuration = configuration.parsed
        let names = Set(configuration.machines.map(\.plan.name))
        if !isAddition {
            settings = configuration.settings
            onSettings(settings)
            queue = StartQueue(queue, parallel: settings.staggerParallel, delay: .seconds(settings.staggerDelay))
            for record in table.records where record.isConfigured && !names.contains(record.name) {
                record.isConfigured = false
                if !record.hasProcess {
                    queue.remove(record.id)
                    table.remove(record)
                }
            }
        }
        for machine in configuration.machines {
            let record: MachineRecord
            if let known = table.find(.name(machine.plan.name)) {
                if known.process != nil, known.plan != machine.plan {
                    log.info("vm \(known.name): runs on as it is, its new definition counts from its next start")
                }
                known.plan = machine.plan
                known.isConfigured = true
                record = known
            } else {
                record = table.add(machine.plan, isConfigured: true)
            }
            guard machine.isEnabled, !record.hasProcess, record.phase != .waiting else { continue }
            record.wait()
            queue.add(record.id)
        }
        for networkSwitch in configuration.parsed.switches where networkSwitch.isEnabled {
            priv.send(
                .setSwitch(
                    name: networkSwitch.name.value, interface: networkSwitch.interface.value, isUp: networkSwitch.isUp))
        }
        startNext()
    }

    func reload() throws(Refusal) {
        try? notification?.reloading()
        defer { try? notification?.ready() }
        guard let path = options.configurationPath else { return apply(DaemonConfiguration(), isAddition: false) }
        log.info("reading \(path) again")
        apply(try read(path, known: Configuration()), isAddition: false)
    }

    func load(_ path: String) throws(Refusal) {
        guard path.hasPrefix("/") else { throw Refusal(.invalid, "\(path): give an absolute path") }
        log.info("reading \(path)")
        var addition = try read(path, known: configuration)
        addition.parsed.machines = configuration.machines + addition.parsed.machines
        addition.parsed.switches = configuration.switches + addition.parsed.switches
        apply(addition, isAddition: true)
    }

    private func read(_ path: String, known: Configuration) throws(Refusal) -> DaemonConfiguration {
        do {
            return try DaemonConfiguration(path: path, macros: options.macros, known: known, uid: options.uid)
        } catch {
            for line in error.lines { log.error(line) }
            let more = error.errors.count > 1 ? " (and \(error.errors.count - 1) more, in the log)" : ""
            throw Refusal(.invalid, "\(error.errors.first ?? path)\(more): nothing was changed")
        }
    }

    func reset(_ scope: Request.ResetScope) throws(Refusal) {
        if scope != .vms { log.info("switches: forgotten") }
        if scope != .switches {
            log.info("all machines are ended and forgotten")
            for record in table.records {
                record.isConfigured = false
                record.stopWaiting()
                queue.remove(record.id)
                if record.hasProcess { kill(record, isForced: true) } else { table.remove(record) }
            }
            table.forgetIDs()
            configuration.machines = []
        }
        if scope != .vms { configuration.switches = [] }
    }

    func setVerbose(_ isVerbose: Bool) {
        log.isVerbose = isVerbose
        for process in table.records.compactMap(\.process) { tell(process, .log(isVerbose: isVerbose)) }
    }
}
