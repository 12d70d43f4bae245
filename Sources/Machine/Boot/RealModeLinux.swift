import Devices
import VMM

/// A Linux image that is entered where all are that a BIOS loads, in real mode ("The Linux/x86 Boot Protocol", "Loading The Rest of
/// The Kernel" and "Running the Kernel"): Linux before 2.6.31, and what only looks like Linux so that boot loaders take it, as
/// iPXE's ipxe.lkrn. It calls the BIOS, so firmware runs first, and then an option ROM, which fetches the parts by fw_cfg:
///
///     0x90000  the image's first part, with a header that says where the rest is; behind it its heap and stack
///     0x9E000  the command line
///     1 MB     the image's second part
///     highest  the initial ramdisk, below what firmware keeps at the end of memory
///
/// The file is not trusted: each length and address is checked against the file and the guest's memory. A guest that changes what
/// was fetched changes what it is itself.
struct RealModeLinux: Sendable {
    /// Protocols that have a command line anywhere, and none of the entries that `LinuxImage` uses.
    private static let versions: Range<UInt16> = 0x202..<0x20A

    /// Offsets of the setup header ("The Real-Mode Kernel Header").
    private enum Field {
        static let setupSectors = 0x1F1
        static let protectedModeParagraphs = 0x1F4
        static let videoMode = 0x1FA
        static let bootFlag = 0x1FE
        static let version = 0x206
        static let loaderType = 0x210
        static let loadFlags = 0x211
        static let ramdiskImage = 0x218
        static let ramdiskSize = 0x21C
        static let heapEnd = 0x224
        static let commandLine = 0x228
        static let initrdAddressMax = 0x22C
    }

    private static let setupAddress: UInt64 = 0x90000
    private static let stackTop = 0xE000
    /// Up to where SeaBIOS begins to keep things of its own.
    private static let commandLineCapacity = 0x1000
    /// The ROM's list has room for so much, and nobody has more for what is as old.
    private static let largestPayload: UInt64 = 64 << 20
    private static let largestInitrd: UInt64 = 256 << 20
    /// At the end of memory: SeaBIOS's tables and buffers.
    private static let firmwareByteCount: UInt64 = 1 << 20

    /// A part of memory, and what goes there.
    private let parts: [(address: UInt64, bytes: [UInt8])]

    /// - Returns: `nil` for other kernels.
    init?(_ loader: KernelLoader, memoryByteCount: UInt64) throws(MachineError) {
        let kernel = loader.kernel
        let head = try kernel.read(at: 0, count: 0x230)
        guard head.has(Array("HdrS".utf8), at: 0x202), let version = head.load(Field.version, as: UInt16.self),
            Self.versions.contains(version), head.load(Field.bootFlag, as: UInt16.self) == 0xAA55,
            // LOADED_HIGH
            let loadFlags = head.load(Field.loadFlags, as: UInt8.self), loadFlags & 1 != 0,
            let setupSectors = head.load(Field.setupSectors, as: UInt8.self),
            let paragraphs = head.load(Field.protectedModeParagraphs, as: UInt32.self),
            let initrdAddressMax = head.load(Field.initrdAddressMax, as: UInt32.self)
        else { return nil }
        if let module = loader.modules.first {
            throw module.file.error("the kernel is Linux and takes no modules", "give it as --initrd")
        }
        let map = try MemoryMap(byteCount: memoryByteCount)
        // Zero means four, for historical reasons.
        let setupByteCount = (Int(setupSectors == 0 ? 4 : setupSectors) + 1) * 512
        guard setupByteCount <= 0x8000, UInt64(setupByteCount) < kernel.byteCount else {
            throw kernel.error("has a damaged setup header", "copy it again")
        }
        let payloadByteCount = min(UInt64(paragraphs) * 16, kernel.byteCount - UInt64(setupByteCount))
        guard (1...Self.largestPayload).contains(payloadByteCount) else {
            throw kernel.error("has a damaged setup header", "copy it again")
        }
        let end = MemoryMap.oneMegabyte + payloadByteCount
        let room = map.lowEnd - min(map.lowEnd, Self.firmwareByteCount)
        guard end <= room else {
            throw kernel.error(
                "does not fit in \(sizeText(map.byteCount)) of memory",
                "give at least -m \(megabytesText(end + Self.firmwareByteCount))")
        }
        // No default: there is a screen, by which Linux is not silent, and iPXE takes it for a command.
        let commandLine = Array((loader.commandLine ?? "").utf8) + [0]
        guard commandLine.count <= Self.commandLineCapacity else {
            throw MachineError(
                "command line: \(commandLine.count - 1) bytes are too many: give at most \(Self.commandLineCapacity - 1)")
        }

        var setup = try kernel.read(at: 0, count: setupByteCount).bytes
        let payload = try kernel.read(at: UInt64(setupByteCount), count: Int(payloadByteCount)).bytes
        // A file that was cut while it was read.
        guard setup.count == setupByteCount, UInt64(payload.count) == payloadByteCount else { throw kernel.truncated() }
        setup += Array(repeating: 0, count: Self.stackTop - setup.count) + commandLine
        func set(_ offset: Int, _ value: UInt64, _ byteCount: Int) {
            for index in 0..<byteCount { setup[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8)) }
        }
        // The mode that there is.
        set(Field.videoMode, 0xFFFF, 2)
        // A loader without a number of its own.
        set(Field.loaderType, 0xFF, 1)
        // CAN_USE_HEAP, and where it ends, less 0x200.
        set(Field.loadFlags, UInt64(loadFlags | 0x80), 1)
        set(Field.heapEnd, UInt64(Self.stackTop - 0x200), 2)
        set(Field.commandLine, Self.setupAddress + UInt64(Self.stackTop), 4)
        var parts: [(UInt64, [UInt8])] = []
        if let initrd = loader.initrd {
            // The field came with 2.03.
            let highest = version >= 0x203 ? UInt64(initrdAddressMax) : 0x37FF_FFFF
            let top = min(room, highest + 1)
            let count = initrd.byteCount
            guard count <= Self.largestInitrd, count <= top, (top - count) & ~0xFFF >= end else {
                throw initrd.error(
                    "its \(sizeText(count)) do not fit beside the kernel", "give more memory with -m, or a smaller one")
            }
            let base = (top - count) & ~0xFFF
            let bytes = try initrd.read(at: 0, count: Int(count)).bytes
            guard UInt64(bytes.count) == count else { throw initrd.truncated() }
            set(Field.ramdiskImage, base, 4)
            set(Field.ramdiskSize, count, 4)
            parts.append((base, bytes))
        } else {
            set(Field.ramdiskImage, 0, 4)
            set(Field.ramdiskSize, 0, 4)
        }
        self.parts = parts + [(Self.setupAddress, setup), (MemoryMap.oneMegabyte, payload)]
    }

    // MARK: For firmware

    static let romName = "linux.rom"

    /// Their names come first among all files', so that their numbers are known: see `rom`.
    var files: [FirmwareConfiguration.File] {
        parts.enumerated().map { .init("-boot/\($0.offset)", $0.element.bytes) }
    }

    /// In the ROM.
    private enum Place {
        static let plugAndPlay = 0x20
        static let entry = 0x40
        static let transfers = 0x90
        static let byteCount = 0x400
    }
    /// More at once the device does not transfer.
    private static let longestTransfer = 8 << 20

    /// An option ROM with a bootstrap entry vector (Plug and Play BIOS Specification 1.0A, 3.2): it has the device carry out the
    /// transfers of a list ("QEMU Firmware Configuration Device", "Guest-side DMA Interface"), and enters the kernel.
    ///
    /// Where it runs is RAM: the device notes there that a transfer is done.
    var rom: [UInt8] {
        var rom = [UInt8](repeating: 0, count: Place.byteCount)
        func put(_ bytes: [UInt8], at place: Int) { rom.replaceSubrange(place..<place + bytes.count, with: bytes) }
        // Signature, length; xor %ax, %ax; lret: nothing to set up.
        put([0x55, 0xAA, UInt8(Place.byteCount / 512), 0x31, 0xC0, 0xCB], at: 0)
        put([UInt8(Place.plugAndPlay)], at: 0x1A)
        put(Array("$PnP".utf8) + [1, 2], at: Place.plugAndPlay)
        put([UInt8(Place.entry)], at: Place.plugAndPlay + 0x1A)
        put(Self.code, at: Place.entry)
        var list = ByteWriter()
        for (index, part) in parts.enumerated() {
            for offset in stride(from: 0, to: part.bytes.count, by: Self.longestTransfer) {
                // Read; for the first, select the item. FW_CFG_FILE_FIRST is 0x20.
                let control = offset == 0 ? UInt32(0x20 + index) << 16 | 1 << 3 | 1 << 1 : 1 << 1
                list.append(control.bigEndian)
                list.append(UInt32(min(Self.longestTransfer, part.bytes.count - offset)).bigEndian)
                list.append((part.address + UInt64(offset)).bigEndian)
            }
        }
        // Zeros end it.
        precondition(Place.transfers + list.bytes.count + 4 < Place.byteCount)
        put(list.bytes, at: Place.transfers)
        rom[Place.byteCount - 1] = 0 &- rom.reduce(0, &+)
        return rom
    }

    private static let code: [UInt8] = [
        0xFA,  // cli
        0xFC,  // cld
        0x8C, 0xC8,  // mov %cs, %ax
        0x8E, 0xD8,  // mov %ax, %ds
        0x66, 0x0F, 0xB7, 0xC8,  // movzwl %ax, %ecx
        0x66, 0xC1, 0xE1, 0x04,  // shl $4, %ecx: where the ROM is
        0xBE, UInt8(Place.transfers), 0x00,  // mov $transfers, %si
        // next: the description's address, upper half first
        0x66, 0x31, 0xC0,  // xor %eax, %eax
        0xBA, 0x14, 0x05,  // mov $0x514, %dx
        0x66, 0xEF,  // out %eax, %dx
        0x89, 0xF0,  // mov %si, %ax
        0x66, 0x01, 0xC8,  // add %ecx, %eax
        0x66, 0x0F, 0xC8,  // bswap %eax
        0xBA, 0x18, 0x05,  // mov $0x518, %dx
        0x66, 0xEF,  // out %eax, %dx
        // wait: until it is done
        0x66, 0x83, 0x3C, 0x00,  // cmpl $0, (%si)
        0x75, 0xFA,  // jne wait
        0x83, 0xC6, 0x10,  // add $16, %si
        0x66, 0x83, 0x3C, 0x00,  // cmpl $0, (%si)
        0x75, 0xDC,  // jne next
        0xB8, 0x00, 0x90,  // mov $0x9000, %ax
        0x8E, 0xD8, 0x8E, 0xC0, 0x8E, 0xE0, 0x8E, 0xE8, 0x8E, 0xD0,  // to %ds, %es, %fs, %gs, %ss
        0xBC, UInt8(stackTop & 0xFF), UInt8(stackTop >> 8),  // mov $stackTop, %sp
        0xEA, 0x00, 0x00, 0x20, 0x90,  // ljmp $0x9020, $0
    ]
}
