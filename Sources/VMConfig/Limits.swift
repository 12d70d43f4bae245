/// The numbers that bound a configuration, as on OpenBSD.
public enum Limits {
    public static let disksPerMachine = 4
    public static let interfacesPerMachine = 4
    /// What `allow base` may name for one machine, its templates' included.
    public static let basesPerMachine = 64
    /// Bytes of a machine's or a switch's name.
    public static let machineNameByteCount = 63
    public static let memoryByteCount: ClosedRange<UInt64> = 1 << 20...128 << 30
    public static let defaultMemoryByteCount: UInt64 = 512 << 20
    /// What `cpus` may ever say; `supportedCPUCount` is what it may say now.
    public static let cpuCount = 1...64
    public static let supportedCPUCount = 1...1
    public static let routingDomain = 0...255
    /// A path without its terminating zero (PATH_MAX).
    public static let pathByteCount = 4095
    /// A kernel's command line.
    public static let commandLineByteCount = 4095
    public static let localPrefixLength = 1...16
    public static let localInet6PrefixLength = 1...64
    public static let staggeredParallel = 1...512
    public static let staggeredDelaySeconds = 0...86_400
    public static let staggeredDefaultDelaySeconds = 30
    public static let agentxContextByteCount = 32
    /// A UNIX socket's path without its terminating zero (unix(7)).
    public static let socketPathByteCount = 107
    /// One word or string of the file, and one macro's value.
    public static let tokenByteCount = 8191
}

/// How much of a hostile file is read before it is refused.
public struct ParseLimits: Sendable {
    /// Bytes of one file.
    public var fileByteCount = 4 << 20
    /// Bytes of all files together.
    public var totalByteCount = 16 << 20
    /// Files open at once: the main file and those that include each other.
    public var includeDepth = 16
    /// Files in all; one that is included twice counts twice.
    public var fileCount = 256
    /// Machines, and switches.
    public var definitionCount = 16_384
    /// Bytes that macros expand to, in all.
    public var expandedByteCount = 4 << 20
    /// Errors and warnings; reading ends when there are as many.
    public var diagnosticCount = 1000

    public init() {}
}
