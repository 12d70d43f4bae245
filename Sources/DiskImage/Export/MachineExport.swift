import Glibc
import Linux

/// A machine for VMware's programs: a folder with its disks as VMDK files and a .vmx file that names them.
///
/// Each file gets its name when all of it is on the medium, and the .vmx file comes last: a folder with one is whole.
public struct MachineExport: Sendable {
    /// The machine's, and its files'.
    public var name: String
    public var memoryByteCount: UInt64 = 512 << 20
    public var cpuCount: UInt32 = 1
    public var interfaceCount = 1
    /// What lies in the CD-ROM drive, where there is a drive: a path, which stays what it is.
    public var disc: String?
    public var hasDrive = false
    /// Smaller, but to be imported: VMware's programs do not run such disks.
    public var isStreamOptimized = false
    public var progress: @Sendable (_ done: UInt64, _ total: UInt64) -> Void = { _, _ in }
    public var isCancelled: @Sendable () -> Bool = { false }

    public init(name: String) { self.name = name }

    /// Four disks are what a machine here has.
    public static let diskLimit = 4
    /// And VMware's programs have ten.
    static let interfaceLimit = 10

    /// - Parameter folder: made when there is none.
    /// - Returns: the paths of the new files.
    public func write(_ disks: [any BlockImage], to folder: String) throws(ImageError) -> [String] {
        guard !name.isEmpty, name.utf8.count <= 100, name.utf8.allSatisfy({ $0 >= 0x20 && $0 != 0x7F && $0 != 0x22 && $0 != 0x2F }),
            !name.hasPrefix(".")
        else { throw ImageError(.refused, folder, "\(name) is no name for a machine and its files: -n gives another") }
        guard (1...Self.diskLimit).contains(disks.count) else {
            throw ImageError(.refused, folder, "\(disks.count) disks: a machine has one to \(Self.diskLimit)")
        }
        guard mkdir(folder, 0o700) == 0 || errno == EEXIST else {
            let error = SystemError("mkdir", errno: errno)
            throw ImageError(.system(error), folder, "cannot be made: \(error.reason)")
        }
        let machine = try NewFile("\(folder)/\(name).vmx")
        var paths: [String] = []
        var isWhole = false
        // Without the machine its disks are nothing.
        defer { if !isWhole { for path in paths { unlink(path) } } }
        var names: [String] = []
        let total = disks.reduce(0) { $0 &+ $1.byteCount }
        var before: UInt64 = 0
        for (index, disk) in disks.enumerated() {
            let fileName = disks.count == 1 ? "\(name).vmdk" : "\(name)-\(index).vmdk"
            let new = try NewFile("\(folder)/\(fileName)")
            var conversion = Conversion(.vmdk(isStreamOptimized: isStreamOptimized), byteCount: disk.byteCount)
            let (progress, start) = (progress, before)
            conversion.progress = { done, _ in progress(start &+ done, total) }
            conversion.isCancelled = isCancelled
            try conversion.run(from: disk, into: try new.open(), fileName: fileName)
            let path = new.path
            try new.finish(as: .vmdk, isDurable: true)
            paths.append(path)
            names.append(fileName)
            before &+= disk.byteCount
        }
        try Array(description(names).utf8).write(try machine.open(), at: 0)
        let path = machine.path
        try machine.finish(isDurable: true)
        isWhole = true
        return paths + [path]
    }

    private func description(_ disks: [String]) -> String {
        var lines = [
            ".encoding = \"UTF-8\"", "config.version = \"8\"", "virtualHW.version = \"8\"", "displayName = \"\(name)\"",
            "guestOS = \"other-64\"", "memsize = \"\(max(4, memoryByteCount / (4 << 20) * 4))\"", "numvcpus = \"\(max(1, cpuCount))\"",
            "scsi0.present = \"TRUE\"", "scsi0.virtualDev = \"lsilogic\"",
        ]
        for (index, disk) in disks.enumerated() {
            lines += ["scsi0:\(index).present = \"TRUE\"", "scsi0:\(index).fileName = \"\(disk)\""]
        }
        for index in 0..<min(max(0, interfaceCount), Self.interfaceLimit) {
            lines += [
                "ethernet\(index).present = \"TRUE\"", "ethernet\(index).connectionType = \"nat\"",
                "ethernet\(index).virtualDev = \"e1000\"",
            ]
        }
        if hasDrive {
            lines.append("ide1:0.present = \"TRUE\"")
            // A name that would end its line or its quotes is left out: the drive is empty then.
            if let disc, disc.unicodeScalars.allSatisfy({ $0.properties.generalCategory != .control && $0 != "\"" && $0 != "|" }) {
                lines += ["ide1:0.deviceType = \"cdrom-image\"", "ide1:0.fileName = \"\(disc)\""]
            } else {
                lines += ["ide1:0.deviceType = \"cdrom-raw\"", "ide1:0.startConnected = \"FALSE\""]
            }
        }
        lines += [
            "serial0.present = \"TRUE\"", "serial0.fileType = \"file\"", "serial0.fileName = \"\(name).log\"",
        ]
        return lines.map { $0 + "\n" }.joined()
    }
}
