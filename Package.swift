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
        .executableTarget(
            name: "vmctl", dependencies: ["Machine", "VMM", "Linux", argumentParser], swiftSettings: safe),

        .testTarget(name: "LinuxTests", dependencies: ["Linux"], swiftSettings: common),
        .testTarget(name: "VMMTests", dependencies: ["VMM", "Linux"], swiftSettings: common),
        .testTarget(
            name: "KVMEngineTests", dependencies: ["KVMEngine", "VMM", "Linux", "CLinux"], swiftSettings: common),
        .testTarget(name: "DevicesTests", dependencies: ["Devices", "VMM"], swiftSettings: common),
        // Runs instructions on the CPU itself, to compare the translator with.
        .target(name: "CSilicon", path: "Tests/CSilicon"),
        .testTarget(
            name: "TranslatorEngineTests", dependencies: ["TranslatorEngine", "VMM", "Linux", "CLinux", "CZydis", "CSilicon"],
            swiftSettings: common),
        .testTarget(name: "MachineTests", dependencies: ["Machine", "VMM", "Linux", "Devices"], swiftSettings: common),
        .testTarget(name: "GuestTests", dependencies: ["Linux"], swiftSettings: common),
    ]
)
