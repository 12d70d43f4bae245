import ControlProtocol
import DiskImage
import Glibc
import Linux
import Machine
import VMM

/// A machine's process: one machine, on descriptors that it was handed, told what to do by vmm.
///
/// The event loop's thread has the socket, the console and signals; "vcpu0" runs the guest, "timer" its clocks.
final class MachineRole {
    enum News: Sendable {
        case event(Machine.Event)
        case paused(Bool)
        case log(String)
        case disks(UInt32, DiskNews)
    }

    private let loop: EventLoop
    let monitor: MessageChannel<MachineCommand, MachineReport>
    let mailbox: Mailbox<News>
    let diskWork = DiskWork()
    /// Of disks, what vmm has not had room for.
    var diskAnswers: [MachineReport] = []
    private(set) var machine: Machine?
    private var console: ConsoleServer?
    private var hub: ConsoleHub?
    private let timeChange: TimeChangeDescriptor
    private var isVerbose = false
    private var isShuttingDown = false
    /// Taken out of the mailbox, and not handled yet.
    private var news: ArraySlice<News> = []

    init(loop: EventLoop, monitor: MessageChannel<MachineCommand, MachineReport>) throws(SystemError) {
        self.loop = loop
        self.monitor = monitor
        mailbox = try Mailbox()
        timeChange = try TimeChangeDescriptor()
        monitor.onMessage = { [unowned self] in handle($0, &$1) }
        // Whoever started us is gone: so is the guest, as with a host whose power is cut.
        monitor.onEnd = { _ in exit(1) }
        monitor.onRoom = { [unowned self] in sendDiskAnswers() }
        try loop.watch(mailbox.descriptor, .readable) { [unowned self] in
            news += mailbox.takeAll()
            while let next = news.popFirst() { handle(next) }
        }
        // Also after the host has slept: guests that know vmmci set their clocks.
        try loop.watch(timeChange.raw, .readable) { [unowned self] in
            if timeChange.clear() { machine?.synchronizeClock() }
        }
    }

    // MARK: - Commands

    private func handle(_ command: MachineCommand, _ descriptors: inout FileDescriptorList) {
        switch command {
        case .setUp(let setup):
            guard machine == nil else { return }
            do {
                try setUp(setup, &descriptors)
            } catch {
                end(.failed, "\(error)")
            }
        case .shutDown:
            guard let machine else { return }
            isShuttingDown = true
            switch machine.requestShutdown() {
            case .controlDevice: monitor.send(.shutDownAsked(.vmmci))
            case .powerButton: monitor.send(.shutDownAsked(.powerButton))
            }
        case .pause: machine?.pause { [mailbox] in if $0 { mailbox.post(.paused(true)) } }
        case .unpause: machine?.unpause { [mailbox] in if $0 { mailbox.post(.paused(false)) } }
        case .attachConsole(let client, let holder): attach(client, holder)
        case .log(let isVerbose): self.isVerbose = isVerbose
        case .sendBreak: hub?.sendBreak()
        case .disks(let client, let command): handle(command, for: client)
        case .insertDisc(let client, let members, let isForced):
            insertDisc(members, &descriptors, isForced: isForced, for: client)
        case .ejectDisc(let client, let isForced): ejectDisc(isForced: isForced, for: client)
        }
    }

    private func setUp(_ setup: MachineSetup, _ descriptors: inout FileDescriptorList) throws(MachineError) {
        isVerbose = setup.isVerbose
        guard let kernel = descriptors.takeFirst(), let terminal = descriptors.takeFirst() else {
            throw MachineError("descriptors are missing")
        }
        var initrd: BootSource?
        if let name = setup.initrd, let file = descriptors.takeFirst() {
            initrd = .opened(try OpenedFile(owning: file, name: name))
        }
        var networkROM: BootSource?
        if let name = setup.networkROM, let file = descriptors.takeFirst() {
            networkROM = .opened(try OpenedFile(owning: file, name: name))
        }
        let kvm = setup.hasKVM ? descriptors.takeFirst() : nil
        let choice = EngineChoice(rawValue: setup.engine) ?? .auto
        let (engine, features) = try choice.make(device: kvm)
        let hub = try ConsoleHub()
        var configuration = MachineConfiguration(
            kernel: .opened(try OpenedFile(owning: kernel, name: setup.kernel)),
            initrd: initrd,
            commandLine: setup.commandLine, memoryByteCount: setup.memory, cpuModel: setup.cpuModel)
        configuration.bootDevice = setup.bootDevice.map { Machine::BootDevice($0) }
        configuration.networkROM = networkROM
        configuration.logsFirmware = setup.isVerbose
        for members in setup.disks { configuration.disks.append(DiskSource(try Self.image("disk", members, &descriptors))) }
        if !setup.cdrom.isEmpty { configuration.cdrom = DiskSource(try Self.image("cdrom", setup.cdrom, &descriptors)) }
        let machine = try Machine(
            configuration, engine: engine, features: features, clock: try HostClock(), terminal: hub
        ) { [mailbox] in mailbox.post(.log($0)) }
        hub.connect(machine.serialPort)
        do {
            console = try ConsoleServer(hub, on: loop, terminal: terminal)
            for line in try Role.machineRunning.narrow() { monitor.send(.log(line)) }
        } catch {
            throw MachineError("\(error)")
        }
        self.machine = machine
        self.hub = hub
        if setup.probes { probe() }
        try machine.start { [mailbox] in mailbox.post(.event($0)) }
    }

    /// The disk that the first of the descriptors are.
    static func image(
        _ role: String, _ members: [ImageChain.Member], _ descriptors: inout FileDescriptorList
    ) throws(MachineError) -> any BlockImage {
        var files = FileDescriptorList()
        for _ in members {
            guard let file = descriptors.takeFirst() else { throw MachineError("descriptors are missing") }
            files.append(file)
        }
        do {
            return try ImageChain(members, files).assemble()
        } catch {
            throw MachineError("\(role) \(error)")
        }
    }

    // MARK: - News

    private func handle(_ news: News) {
        switch news {
        case .log(let text): if isVerbose { monitor.send(.log(text)) }
        case .paused(true): monitor.send(.paused)
        case .paused(false): monitor.send(.unpaused)
        case .event(let event): handle(event)
        case .disks(let client, let news): tell(client, news)
        }
    }

    private func handle(_ event: Machine.Event) {
        switch event {
        case .started: monitor.send(.running)
        case .restarted(let reason): monitor.send(.restarted(reason))
        case .paused, .unpaused, .shutdownRequested: break
        case .shutdownAcknowledged: if isVerbose { monitor.send(.log("the guest goes down")) }
        case .shutdownTimedOut(.controlDevice, let wasAcknowledged):
            // As on OpenBSD: a guest that has the driver and does not go is killed.
            monitor.send(.log(wasAcknowledged ? "the guest did not end in time" : "the guest's vmmci driver does not answer"))
            stop()
        case .shutdownTimedOut(.powerButton, _):
            isShuttingDown = false
            monitor.send(.shutDownTimedOut("the guest did not answer the power button within 120 s"))
        case .ended(.poweredOff): end(.stopped, isShuttingDown ? "shut down" : "the guest switched itself off")
        case .ended(.exited(let status)): end(.stopped, "the guest ended with status \(status)")
        case .ended(.stopped): end(.stopped, "was stopped")
        case .ended(.failed(let reason)): end(.failed, reason)
        }
    }

    /// A client that does not read its console holds no machine back that is to end.
    func stop() {
        hub?.stopWaiting()
        machine?.requestStop()
    }

    /// The last word; the process ends behind it.
    func end(_ end: MachineReport.End, _ text: String) {
        console?.detach()
        diskWork.close()
        // What was done until then counts as done, and nobody comes back to the mailbox.
        news += mailbox.takeAll()
        for case .disks(let client, let answer) in news { tell(client, answer) }
        news = []
        // Also what there is no room for yet: `onRoom` is called in here.
        monitor.finish()
        monitor.send(.ended(end, text))
        monitor.finish()
        loop.stop()
    }

    // MARK: - Console

    private var holder: String?

    private func attach(_ client: UInt32, _ name: String) {
        guard let console, !console.isAttached else {
            return monitor.send(.consoleRefused(client: client, holder: holder ?? "nobody: the machine is not ready"))
        }
        do {
            let ends = try StreamPair()
            _ = try console.attach(try FileDescriptor(duplicating: ends.first.raw)) { [unowned self] _ in
                holder = nil
                monitor.send(.consoleHolder(nil))
            }
            holder = name
            monitor.send(.consoleAttached(client: client), descriptors: [ends.second.raw])
            monitor.send(.consoleHolder(name))
        } catch {
            monitor.send(.consoleRefused(client: client, holder: "nobody: \(error)"))
        }
    }

    // MARK: - Tests

    private func probe() {
        for line in RoleProbe.lines() { monitor.send(.probe(line)) }
    }
}

extension Machine::BootDevice {
    init(_ device: ControlProtocol::BootDevice) {
        self =
            switch device {
            case .disk: .disk
            case .cdrom: .cdrom
            case .net: .net
            }
    }
}
