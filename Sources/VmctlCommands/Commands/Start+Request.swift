import ControlProtocol
import DiskImage
import Linux
import VMConfig

extension Start {
    /// What the options say, checked as far as it can be here. The kernel's and the initrd's paths are as given.
    func options(_ output: Output) throws -> StartRequest {
        var request = StartRequest(try operand.machine())
        request.bootDevice = try OptionValues.single(bootDevice, "boot device").map { word throws(WrongUsage) in
            guard let device = BootDevice(name: word) else {
                throw WrongUsage("unknown boot device \(word): give disk, cdrom or net")
            }
            return device
        }
        request.kernel = try OptionValues.single(kernel, "boot image")
        if request.kernel == "" { throw WrongUsage("invalid boot image path: it is empty") }
        request.initrd = try OptionValues.single(initrd, "initrd")
        request.commandLine = try OptionValues.single(commandLine, "command line")
        if let text = request.commandLine, text.utf8.count > Limits.commandLineByteCount {
            throw WrongUsage("command line too long: \(Limits.commandLineByteCount) bytes are the most")
        }
        request.memory = try OptionValues.single(memory, "memory").map { text throws(WrongUsage) in
            try OptionValues.memory(text, output.say)
        }
        request.cpus = try OptionValues.single(cpuCount, "cpus").map { text throws(WrongUsage) in
            try OptionValues.count(text, in: Limits.cpuCount, "cpu count")
        }
        request.engine = try OptionValues.single(engine, "engine").map { word throws(WrongUsage) in
            try OptionValues.choice(word, of: MachineDefinition.Engine.allCases.map(\.rawValue), "engine")
        }
        request.cpuModel = try OptionValues.single(cpuModel, "cpu").map { word throws(WrongUsage) in
            try OptionValues.choice(word, of: MachineDefinition.CPUModel.allCases.map(\.rawValue), "cpu")
        }
        request.template = try OptionValues.single(template, "template")
        if let name = request.template, name.utf8.count > Limits.machineNameByteCount {
            throw WrongUsage("instance vm name too long: \(Limits.machineNameByteCount) bytes are the most")
        }
        request.disks = try disks.map(Self.disk)
        request.cdrom = try OptionValues.single(cdrom, "iso image").map { path throws(Failure) in
            try Self.absolute(path, "invalid iso image path: \(path)")
        }
        try setInterfaces(&request)
        try checkWhole(request, output)
        return request
    }

    private func setInterfaces(_ request: inout StartRequest) throws(WrongUsage) {
        request.interfaces = Array(repeating: .local, count: localInterfaces) + switches.map { .onSwitch($0) }
        if let text = try OptionValues.single(interfaceCount, "interfaces") {
            let count = try OptionValues.count(text, in: 0...Int(Int32.max), "count")
            guard count > 0 else { throw WrongUsage("invalid interface count: give 1 or more") }
            request.interfaceCount = count
        }
        let count = max(request.interfaces.count, Int(request.interfaceCount ?? 0))
        guard count <= Limits.interfacesPerMachine else {
            throw WrongUsage("too many network interfaces: \(Limits.interfacesPerMachine) are the most")
        }
        guard request.disks.count <= Limits.disksPerMachine else {
            throw WrongUsage("too many disks: \(Limits.disksPerMachine) are the most")
        }
    }

    /// As on OpenBSD: options that make a machine, rather than change how a known one boots, must make a whole one.
    private func checkWhole(_ request: StartRequest, _ output: Output) throws(WrongUsage) {
        guard request.template == nil else { return }
        let hasInterfaces = !request.interfaces.isEmpty || request.interfaceCount != nil
        let bootsSomething = request.kernel != nil || !request.disks.isEmpty || request.cdrom != nil
        guard bootsSomething || hasInterfaces || request.memory != nil else { return }
        if request.disks.isEmpty { output.say("starting without disks") }
        guard bootsSomething else { throw WrongUsage("no kernel or disk/cdrom specified: give -b, -d or -r") }
        if !hasInterfaces { output.say("starting without network interfaces") }
    }

    /// `raw:` and its kin stay in front.
    private static func disk(_ text: String) throws(Failure) -> String {
        let location = ImageLocation(text)
        let path = try absolute(location.path, "invalid disk path: \(text)")
        return location.format.map { "\($0.rawValue):\(path)" } ?? path
    }

    private static func absolute(_ path: String, _ complaint: String) throws(Failure) -> String {
        do {
            return try FilePaths.resolved(path)
        } catch {
            throw Failure("\(complaint): \(error.reason)")
        }
    }
}

/// A file that the client opens, so that the daemon reads only what its user may read.
struct StartFile: ~Copyable {
    /// Absolute, for the daemon's messages.
    let path: String
    private let file: RegularFile

    init(_ role: String, _ given: String) throws(Failure) {
        do {
            file = try RegularFile(given)
        } catch .notRegular(let kind) {
            throw Failure("\(role) must be a regular file: '\(given)' is \(kind)")
        } catch {
            throw Failure("cannot open \(role) '\(given)': \(error)")
        }
        path = (try? FilePaths.resolved(given)) ?? given
    }

    consuming func release() -> FileDescriptor { file.release() }
}
