import ControlProtocol
import DiskImage
import Glibc
import Linux
import Machine
import VMConfig

/// Descriptors that a client opened for one start.
struct RunFiles: ~Copyable {
    var kernel: FileDescriptor?
    var initrd: FileDescriptor?
    var networkROM: FileDescriptor?
}

/// From a request or a turn to a process.
extension Parent {
    func start(
        _ request: StartRequest, _ client: UInt32, _ peer: Peer, _ descriptors: inout FileDescriptorList
    ) throws(Refusal) {
        var files = RunFiles()
        if request.kernel != nil { files.kernel = descriptors.takeFirst() }
        if request.initrd != nil { files.initrd = descriptors.takeFirst() }

        let record: MachineRecord, plan: MachinePlan
        if let template = request.template {
            (record, plan) = try instance(of: template, request, peer)
        } else if let known = table.find(request.machine) {
            (record, plan) = (known, try overridden(known, request, peer))
        } else {
            (record, plan) = try adHoc(request, peer)
        }
        do {
            try start(record, plan, files, by: peer.uid)
            record.process?.starters.append(client)
        } catch {
            if !record.isConfigured { table.remove(record) }
            throw error
        }
    }

    /// A known machine, with what may be different this once: what it boots.
    private func overridden(
        _ record: MachineRecord, _ request: StartRequest, _ peer: Peer
    ) throws(Refusal) -> MachinePlan {
        try requireControl(peer, record)
        if let process = record.process {
            throw Refusal(.alreadyRunning, "vm \(record.name) is already running\(process.pid.map { ", pid \($0)" } ?? "")")
        }
        var boot = StartRequest(request.machine)
        boot.kernel = request.kernel
        boot.initrd = request.initrd
        boot.commandLine = request.commandLine
        boot.bootDevice = request.bootDevice
        guard request == boot else {
            throw Refusal(
                .invalid,
                "vm \(record.name) is configured\(record.plan.source.map { " at \($0)" } ?? ""): "
                    + "only -b, --initrd, --cmdline and -B may be given; change the file and reload, or take another name")
        }
        record.stopWaiting()
        queue.remove(record.id)
        var plan = record.plan
        try plan.apply(request, opener: opener(for: peer))
        return plan
    }

    /// A machine that is in no file.
    private func adHoc(_ request: StartRequest, _ peer: Peer) throws(Refusal) -> (MachineRecord, MachinePlan) {
        guard case .name(let name) = request.machine, request.hasOptions else { throw noSuchMachine(request.machine) }
        guard permissions.isAdministrator(peer) else {
            throw Refusal(
                .permission, "only root may start a vm that is not configured: have \(name) put into vm.conf with you as owner")
        }
        try check(name: name)
        var plan = MachinePlan(name: name, owner: ResolvedOwner(uid: peer.uid))
        try plan.apply(request, opener: opener(for: peer))
        return (table.add(plan, isConfigured: false), plan)
    }

    // MARK: - A process for it

    /// - Parameters:
    ///   - files: descriptors that stand for the plan's paths.
    ///   - starter: who may control it while it runs, beside its owner's group.
    func start(
        _ record: MachineRecord, _ plan: MachinePlan, _ given: consuming RunFiles, by starter: UInt32
    ) throws(Refusal) {
        var files = given
        try refuseWhatIsMissing(plan)
        let kernelPath =
            if let kernel = plan.kernel { kernel } else { try open(DefaultFirmware.bios, plan, into: &files.kernel) }
        var networkROMPath: String?
        // Not beside an initrd, which says that the kernel is one.
        if plan.bootDevice == .net, plan.initrd == nil {
            do {
                networkROMPath = try open(DefaultFirmware.networkROM, plan, into: &files.networkROM)
            } catch {
                // A kernel may have no use for it.
                if plan.kernel == nil { throw error }
            }
        }
        if files.kernel.number == nil { files.kernel = try open("kernel", kernelPath, plan) }
        if files.initrd.number == nil, let path = plan.initrd { files.initrd = try open("initrd", path, plan) }
        var images = FileDescriptorList()
        let disks = try plan.disks.map { disk throws(Refusal) in try open(disk, "disk", plan, into: &images) }
        let cdrom = try plan.cdrom.map { cdrom throws(Refusal) in try open(cdrom, "cdrom", plan, into: &images) }
        let terminal = try makeTerminal(plan)
        let path = (try? terminal.slavePath()) ?? "?"
        let kvm = plan.engine == .translator ? nil : try? FileDescriptor(open: "/dev/kvm", flags: O_RDWR)
        let numbers = [
            files.kernel.number, terminal.master.raw, files.initrd.number, files.networkROM.number, kvm.number,
        ].compactMap { $0 } + images.numbers
        let setup = MachineSetup(
            name: plan.name, kernel: kernelPath, initrd: plan.initrd, networkROM: networkROMPath, bootDevice: plan.bootDevice,
            commandLine: plan.commandLine,
            memory: plan.memory, engine: plan.engine.rawValue, cpuModel: plan.cpuModel, hasKVM: kvm.number != nil,
            disks: disks, cdrom: cdrom ?? [], isVerbose: log.isVerbose, probes: options.probes)

        let run = takeRunNumber()
        record.start(
            MachineProcess(
                run: run, plan, terminalPath: path, starter: starter, startTime: SystemTime.seconds()))
        monitor.send(.start(run: run, setup), descriptors: numbers)
        record.process?.startDeadline = deadlines.schedule(after: Self.startNanoseconds) { [unowned self] in
            guard let record = table.find(run: run), record.phase == .starting else { return }
            log.error("vm \(record.name): does not start, and is killed")
            kill(record, isForced: true)
        }
    }

    private func refuseWhatIsMissing(_ plan: MachinePlan) throws(Refusal) {
        let place = plan.source.map { "\($0): " } ?? ""
        if plan.cpus != 1 {
            throw Refusal(.invalid, "\(place)vm \(plan.name): \(plan.cpus) cpus: this version runs one")
        }
        if plan.interfaceCount > 0 {
            log.warning("\(place)vm \(plan.name): this version has no network device yet: started without")
        }
    }
}
