import VMM

/// Where a guest's RAM lies in its physical address space, and what the firmware tells it about that.
///
///         0 ─┬─ RAM ──────────── 576 KB ─┬─ reserved, but backed ── 1 MB ─┐
///            │ boot structures           │ EBDA pointer's RSDP            │
///      1 MB ─┴─ RAM ───────────────────────────────────────── 0xEFFF0000 ─┤
///                                                  ACPI tables, reserved  │ 64 KB
///                                                  PCI devices            │ 252 MB
///                                                  firmware's ROM         │ up to 4 MB
///      4 GB ─── the rest of the RAM
///
/// With firmware, all below 1 MB is firmware's to divide: the screen's text page at 0xB8000 and a copy of its own top are in
/// that RAM. It gets ACPI's tables as files and finds a place for them itself.
public struct MemoryMap: Hashable, Sendable {
    /// One line of the firmware's memory map (ACPI 6.5, 15.1).
    public struct Entry: Hashable, Sendable {
        public enum Kind: UInt32, Sendable { case ram = 1, reserved = 2 }
        public let base: UInt64
        public let byteCount: UInt64
        public let kind: Kind
    }

    /// The guest's RAM, as asked for.
    public let byteCount: UInt64
    /// Of firmware's image, in whole pages that end at 4 GB; 0 without.
    public let firmwareByteCount: UInt64

    /// Below it the boot structures and the kernel's real-mode trampolines; above it, to 1 MB, VGA and firmware on a
    /// PC: backed, so that probing does not fault, but not offered.
    static let conventionalEnd: UInt64 = 576 << 10
    static let oneMegabyte: UInt64 = 1 << 20
    /// 64 KB for ACPI tables.
    public static let acpiBase: UInt64 = 0xEFFF_0000
    public static let acpiByteCount: UInt64 = 64 << 10
    static let fourGigabytes: UInt64 = 1 << 32
    /// The most that fits behind the devices.
    static let largestFirmware: UInt64 = 4 << 20
    /// What a PC's BIOS calls conventional memory, whatever it keeps of it for itself.
    static let biosConventionalEnd: UInt64 = 640 << 10

    /// What a machine can have. Less than the minimum boots nothing; the maximum is vmd's.
    public static let smallest: UInt64 = 16 << 20
    public static let largest: UInt64 = 128 << 30

    /// - Parameter firmwareByteCount: of the image, if the machine boots by firmware.
    /// - Throws: when the size is out of bounds or not a whole number of megabytes.
    public init(byteCount: UInt64, firmwareByteCount: UInt64 = 0) throws(MachineError) {
        precondition(firmwareByteCount <= Self.largestFirmware)
        self.firmwareByteCount = (firmwareByteCount + GuestMemory.pageSize - 1) & ~(GuestMemory.pageSize - 1)
        guard byteCount >= Self.smallest else {
            throw MachineError("memory size \(sizeText(byteCount)) is too small: give at least \(sizeText(Self.smallest))")
        }
        guard byteCount <= Self.largest else {
            throw MachineError(
                "memory size \(sizeText(byteCount)) is too large: the limit is \(sizeText(Self.largest))")
        }
        guard byteCount % (1 << 20) == 0 else {
            throw MachineError("memory size \(byteCount) is not a whole number of megabytes")
        }
        self.byteCount = byteCount
    }

    /// The end of the RAM that starts at 0. Kernels and initial ramdisks go below it.
    public var lowEnd: UInt64 { min(byteCount, Self.acpiBase) }
    /// How much RAM lies from 4 GB up.
    public var highByteCount: UInt64 { byteCount - lowEnd }

    /// What `GuestMemory` maps as RAM: all of the above, the ACPI area on top of what was asked for.
    public var ranges: [(base: UInt64, byteCount: UInt64)] {
        var ranges = [(base: UInt64(0), byteCount: lowEnd)]
        if firmwareByteCount == 0 { ranges.append((base: Self.acpiBase, byteCount: Self.acpiByteCount)) }
        if highByteCount > 0 { ranges.append((base: Self.fourGigabytes, byteCount: highByteCount)) }
        return ranges
    }

    /// What `GuestMemory` maps for reading only.
    public var rom: (base: UInt64, byteCount: UInt64)? {
        firmwareByteCount == 0 ? nil : (Self.fourGigabytes - firmwareByteCount, firmwareByteCount)
    }

    /// What the guest is told; of firmware, what it is told to make its own map of.
    public var entries: [Entry] {
        var entries = firmwareByteCount == 0 ? kernelEntries : firmwareEntries
        if highByteCount > 0 {
            entries.append(Entry(base: Self.fourGigabytes, byteCount: highByteCount, kind: .ram))
        }
        return entries
    }

    private var firmwareEntries: [Entry] {
        [
            Entry(base: 0, byteCount: lowEnd, kind: .ram),
            Entry(base: Self.fourGigabytes - Self.largestFirmware, byteCount: Self.largestFirmware, kind: .reserved),
        ]
    }

    private var kernelEntries: [Entry] {
        [
            Entry(base: 0, byteCount: Self.conventionalEnd, kind: .ram),
            Entry(
                base: Self.conventionalEnd, byteCount: Self.oneMegabyte - Self.conventionalEnd, kind: .reserved),
            Entry(base: Self.oneMegabyte, byteCount: lowEnd - Self.oneMegabyte, kind: .ram),
            Entry(base: Self.acpiBase, byteCount: Self.acpiByteCount, kind: .reserved),
        ]
    }
}
