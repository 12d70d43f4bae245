import Linux
import VMM

/// What a machine starts with: a kernel that is loaded for it, or firmware that finds one.
enum Boot: Sendable {
    case kernel(KernelLoader)
    case firmware(FirmwareImage, FirmwareOptions)

    init(_ configuration: MachineConfiguration) throws(MachineError) {
        let source = if let kernel = configuration.kernel { kernel } else { try DefaultFirmware.bios.open() }
        let loader = try KernelLoader(
            kernel: source, initrd: configuration.initrd, modules: configuration.modules,
            commandLine: configuration.commandLine, bootAddress: configuration.bootAddress)
        // Whoever gets an open file may open none, and so no BIOS: there `KernelLoader` refuses it.
        if case .path? = configuration.kernel, let kernel = try RealModeLinux(loader, memoryByteCount: configuration.memoryByteCount) {
            self = .firmware(try Self.bios(for: loader.kernel), FirmwareOptions(kernel, logsDebugPort: configuration.logsFirmware))
            return
        }
        guard let image = try loader.firmware() else {
            self = .kernel(loader)
            return
        }
        if let initrd = configuration.initrd {
            throw MachineError("initrd \(initrd.name): firmware takes none: give a kernel with -b")
        }
        if let module = configuration.modules.first {
            throw MachineError("module \(module.file.name): firmware takes none: give a kernel with -b")
        }
        if configuration.commandLine != nil {
            throw MachineError("command line: firmware takes none: give a kernel with -b")
        }
        self = .firmware(image, try FirmwareOptions(configuration))
    }

    /// The BIOS that a kernel calls.
    private static func bios(for kernel: BootFile) throws(MachineError) -> FirmwareImage {
        guard let source = try? DefaultFirmware.bios.open(),
            let image = try KernelLoader(kernel: source, initrd: nil, commandLine: nil).firmware()
        else { throw kernel.error("needs a BIOS, and there is none", "install the package seabios, or boot it from a disk or CD") }
        return image
    }

    var file: BootFile {
        switch self {
        case .kernel(let loader): loader.kernel
        case .firmware(let image, _): image.file
        }
    }

    /// Of firmware's image, 0 without.
    var firmwareByteCount: UInt64 {
        switch self {
        case .kernel: 0
        case .firmware(let image, _): image.file.byteCount
        }
    }

    var firmwareOptions: FirmwareOptions? {
        switch self {
        case .kernel: nil
        case .firmware(_, let options): options
        }
    }
}

/// What a machine's owner tells its firmware.
struct FirmwareOptions: Sendable {
    /// `nil`: firmware's own order.
    let bootDevice: BootDevice?
    /// For booting from the network: its file's name and content.
    let optionROM: (name: String, bytes: [UInt8])?
    let logsDebugPort: Bool
    /// What the option ROM boots, if it is to be booted before all else.
    let kernel: RealModeLinux?

    /// An option ROM and firmware share 128 KB below 1 MB.
    private static let largestROM: UInt64 = 128 << 10

    init(_ kernel: RealModeLinux, logsDebugPort: Bool) {
        bootDevice = nil
        optionROM = (RealModeLinux.romName, kernel.rom)
        self.logsDebugPort = logsDebugPort
        self.kernel = kernel
    }

    init(_ configuration: MachineConfiguration) throws(MachineError) {
        kernel = nil
        bootDevice = configuration.bootDevice
        logsDebugPort = configuration.logsFirmware
        guard bootDevice == .net else {
            optionROM = nil
            return
        }
        let source =
            if let rom = configuration.networkROM { rom } else { try DefaultFirmware.networkROM.open() }
        let file = try BootFile("network boot ROM", source)
        guard file.byteCount <= Self.largestROM else {
            throw file.error("is larger than \(sizeText(Self.largestROM))", "give the ROM of ipxe-qemu")
        }
        let bytes = try file.read(at: 0, count: Int(file.byteCount)).bytes
        // PCI firmware 3.0, 5.1.
        guard bytes.starts(with: [0x55, 0xAA]) else { throw file.error("is not an option ROM", "give the ROM of ipxe-qemu") }
        let name = file.path.split(separator: "/").last.map(String.init) ?? "network.rom"
        optionROM = (name.utf8.count <= 40 ? name : "network.rom", bytes)
    }
}

/// Firmware that the host's packages brought. Whoever may open nothing has somebody else look for it.
public enum DefaultFirmware {
    /// Where it may be, the best first, and what to say when it is nowhere.
    public struct Search: Sendable {
        public let paths: [String]
        public let complaint: String

        /// Opens the first that can be.
        func open() throws(MachineError) -> BootSource {
            for path in paths {
                if let file = try? RegularFile(path) { return .opened(OpenedFile(file)) }
            }
            throw MachineError(complaint)
        }
    }

    /// SeaBIOS. The first place is OpenBSD's own.
    public static let bios = Search(
        paths: [
            "/etc/firmware/vmm-bios", "/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios.bin",
            "/usr/share/qemu/bios-256k.bin", "/usr/share/qemu/bios.bin",
        ], complaint: "vmm bios firmware file not found: install the package seabios, or give a kernel with -b")

    /// The option ROM by which it boots from the network: iPXE for virtio.
    public static let networkROM = Search(
        paths: [
            "/usr/lib/ipxe/qemu/pxe-virtio.rom", "/usr/lib/ipxe/virtio-net.rom", "/usr/share/qemu/pxe-virtio.rom",
        ], complaint: "network boot ROM not found: install the package ipxe-qemu, or boot from something else")
}
