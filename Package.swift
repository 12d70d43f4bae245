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
        .library(name: "ControlProtocol", targets: ["ControlProtocol"]),
        .executable(name: "vmctl", targets: ["vmctl"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0")
    ],
    targets: [
        .target(name: "CLinux"),
        .systemLibrary(name: "CZydis", providers: [.apt(["libzydis-dev"])]),
        .target(name: "Linux", dependencies: ["CLinux"], swiftSettings: common),
        .target(name: "VMM", dependencies: ["Linux"], swiftSettings: common),
        .target(name: "KVMEngine", dependencies: ["VMM", "Linux", "CLinux"], swiftSettings: common),
        .target(
            name: "TranslatorEngine", dependencies: ["VMM", "Linux", "CLinux", "CZydis"],
            swiftSettings: common + [.enableUpcomingFeature("InternalImportsByDefault")]),
        .target(name: "Devices", dependencies: ["VMM"], swiftSettings: safe),
        .target(
            name: "Machine", dependencies: ["VMM", "Linux", "Devices", "KVMEngine", "TranslatorEngine"],
            swiftSettings: safe),
        .target(name: "ControlProtocol", dependencies: ["Linux"], swiftSettings: safe),
        .executableTarget(
            name: "vmctl", dependencies: ["Machine", "VMM", "Linux", argumentParser], swiftSettings: safe),

        // Endless loops of every shape: how soon an interrupt reaches them, and that it does.
        .target(name: "LoopShapes", path: "Benchmarks/LoopShapes", swiftSettings: safe),
        .executableTarget(
            name: "latency", dependencies: ["TranslatorEngine", "VMM", "Linux", "LoopShapes"], path: "Benchmarks/Latency",
            swiftSettings: common),

        .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: safe),
        .testTarget(name: "LinuxTests", dependencies: ["Linux"], swiftSettings: common),
        .testTarget(name: "VMMTests", dependencies: ["VMM", "Linux", "TestSupport"], swiftSettings: common),
        .testTarget(
            name: "KVMEngineTests", dependencies: ["KVMEngine", "VMM", "Linux", "CLinux"], swiftSettings: common),
        .testTarget(name: "DevicesTests", dependencies: ["Devices", "VMM", "TestSupport"], swiftSettings: common),
        // Runs instructions on the CPU itself, to compare the translator with.
        .target(name: "CSilicon", path: "Tests/CSilicon"),
        .testTarget(
            name: "TranslatorEngineTests", dependencies: ["TranslatorEngine", "Machine", "Devices", "VMM", "Linux", "CLinux", "CZydis", "CSilicon", "LoopShapes", "TestSupport"],
            swiftSettings: common),
        .testTarget(name: "MachineTests", dependencies: ["Machine", "VMM", "Linux", "Devices", "TestSupport"], swiftSettings: common),
        .testTarget(name: "GuestTests", dependencies: ["Linux"], swiftSettings: common),
    ]
)
