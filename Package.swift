// swift-tools-version: 6.3
import PackageDescription

// Warnings are errors everywhere. Strict memory safety is on in every target whose subject is not itself
// raw memory; `Linux`, the engines and `VMM` handle mappings and code, and fence that in few files.
let common: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
]
let safe: [SwiftSetting] = common + [.strictMemorySafety()]

let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

// The order of the targets is the order of the rooms: a target uses only those above it.
let package = Package(
    name: "vmd",
    products: [
        .library(name: "VMM", targets: ["VMM"]),
        .library(name: "DiskImage", targets: ["DiskImage"]),
        .library(name: "VMConfig", targets: ["VMConfig"]),
        .library(name: "ControlProtocol", targets: ["ControlProtocol"]),
        .executable(name: "vmctl", targets: ["vmctl"]),
        .executable(name: "vmd", targets: ["vmd"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
    ],
    targets: [
        .target(name: "CLinux"),
        .systemLibrary(name: "CZydis", providers: [.apt(["libzydis-dev"])]),
        .systemLibrary(name: "CSeccomp", providers: [.apt(["libseccomp-dev"])]),
        .systemLibrary(name: "CZlib", providers: [.apt(["zlib1g-dev"])]),
        .systemLibrary(name: "CZstd", providers: [.apt(["libzstd-dev"])]),
        .target(name: "Linux", dependencies: ["CLinux", "CSeccomp"], swiftSettings: common),
        .target(name: "DiskImage", dependencies: ["Linux", "CLinux", "CZlib", "CZstd"], swiftSettings: common),
        .target(name: "VMM", dependencies: ["Linux"], swiftSettings: common),
        .target(name: "KVMEngine", dependencies: ["VMM", "Linux", "CLinux"], swiftSettings: common),
        .target(
            name: "TranslatorEngine", dependencies: ["VMM", "Linux", "CLinux", "CZydis"],
            swiftSettings: common + [.enableUpcomingFeature("InternalImportsByDefault")]),
        .target(name: "Devices", dependencies: ["VMM", "DiskImage", "Linux"], swiftSettings: safe),
        .target(
            name: "Machine", dependencies: ["VMM", "Linux", "CZlib", "DiskImage", "Devices", "KVMEngine", "TranslatorEngine"],
            swiftSettings: safe),
        .target(name: "VMConfig", swiftSettings: safe),
        .target(name: "ControlProtocol", dependencies: ["DiskImage", "Linux"], swiftSettings: safe),
        .target(
            name: "Daemon",
            dependencies: [
                "Machine", "VMM", "DiskImage", "VMConfig", "ControlProtocol", "Linux", .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: safe),
        .executableTarget(name: "vmd", dependencies: ["Daemon", "Linux", argumentParser], swiftSettings: safe),
        .target(
            name: "VmctlCommands",
            dependencies: ["Machine", "VMM", "DiskImage", "VMConfig", "ControlProtocol", "Linux", argumentParser], swiftSettings: safe),
        .executableTarget(
            name: "vmctl", dependencies: ["VmctlCommands", "Linux"], swiftSettings: safe),

        // Endless loops of every shape: how soon an interrupt reaches them, and that it does.
        .target(name: "LoopShapes", path: "Benchmarks/LoopShapes", swiftSettings: safe),
        .executableTarget(
            name: "latency", dependencies: ["TranslatorEngine", "VMM", "Linux", "LoopShapes"], path: "Benchmarks/Latency",
            swiftSettings: common),

        // What the tests of processes and sandboxes run: a program whose every wall they may build and look at.
        .executableTarget(
            name: "sandbox-helper", dependencies: ["Linux"], path: "Tests/SandboxHelper", swiftSettings: common),
        .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: safe),
        .testTarget(name: "LinuxTests", dependencies: ["Linux", "sandbox-helper"], swiftSettings: common),
        // Folders of a test's own, and other programs to compare with.
        .target(name: "DiskTestSupport", dependencies: ["Linux"], path: "Tests/DiskTestSupport", swiftSettings: common),
        .testTarget(name: "DiskImageTests", dependencies: ["DiskImage", "Linux", "CLinux", "TestSupport", "DiskTestSupport"], swiftSettings: common),
        .testTarget(name: "VMMTests", dependencies: ["VMM", "Linux", "TestSupport"], swiftSettings: common),
        .testTarget(
            name: "KVMEngineTests", dependencies: ["KVMEngine", "TranslatorEngine", "Devices", "VMM", "Linux", "CLinux", "TestSupport"],
            swiftSettings: common),
        .testTarget(name: "DevicesTests", dependencies: ["Devices", "VMM", "DiskImage", "Linux", "TestSupport"], swiftSettings: common),
        // Runs instructions on the CPU itself, to compare the translator with.
        .target(name: "CSilicon", path: "Tests/CSilicon"),
        .testTarget(
            name: "TranslatorEngineTests", dependencies: ["TranslatorEngine", "Machine", "Devices", "VMM", "Linux", "CLinux", "CZydis", "CSilicon", "LoopShapes", "TestSupport"],
            swiftSettings: common),
        .testTarget(name: "VMConfigTests", dependencies: ["VMConfig", "TestSupport"], swiftSettings: safe),
        .testTarget(name: "MachineTests", dependencies: ["Machine", "KVMEngine", "TranslatorEngine", "VMM", "Linux", "CLinux", "Devices", "DiskImage", "CZlib", "TestSupport"], swiftSettings: common),
        .testTarget(
            name: "DaemonTests", dependencies: ["Daemon", "Machine", "ControlProtocol", "DiskImage", "VMConfig", "Linux", "TestSupport"], swiftSettings: common),
        // A daemon that answers what a test tells it to.
        .target(
            name: "ControlTestSupport", dependencies: ["ControlProtocol", "Linux"], path: "Tests/ControlTestSupport",
            swiftSettings: common),
        .testTarget(
            name: "ControlProtocolTests", dependencies: ["ControlProtocol", "DiskImage", "Linux", "TestSupport", "ControlTestSupport"],
            swiftSettings: common),
        .testTarget(
            name: "VmctlCommandsTests",
            dependencies: [
                "VmctlCommands", "ControlProtocol", "DiskImage", "Linux", "CLinux", "VMConfig", "TestSupport", "ControlTestSupport",
                "DiskTestSupport",
            ],
            swiftSettings: common),
        .testTarget(
            name: "GuestTests", dependencies: ["Linux", "CLinux", "ControlProtocol", "DiskImage", "TestSupport"], swiftSettings: common),
    ]
)
