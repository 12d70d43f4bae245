/// What kind of CPU a guest sees: the levels of the x86-64 psABI (section 3.1.1), or all of the host's.
///
/// A level always shows the instructions that it is defined by. Beyond those it shows what the host and the engine
/// have of things that go with it: system features, random numbers, and cryptography in the level's encodings.
public enum CPUModel: String, CaseIterable, Sendable, CustomStringConvertible {
    case v1 = "x86-64"
    case v2 = "x86-64-v2"
    case v3 = "x86-64-v3"
    case v4 = "x86-64-v4"
    case host

    public var description: String { rawValue }

    /// The model when the user names none, if the host has it.
    public static let standard = CPUModel.v3

    /// The model of that name, as on a command line.
    public init(named name: String) throws(CPUPolicyError) {
        guard let model = CPUModel(rawValue: name) else { throw .unknownModel(name) }
        self = model
    }

    /// What it must have.
    var required: CPUFeatures {
        switch self {
        case .v1, .host:
            // The psABI's list, and what every 64-bit kernel relies on.
            [.cmov, .cx8, .fpu, .fxsr, .mmx, .sse, .sse2, .syscall, .lm, .msr, .pae, .pge, .pse, .tsc, .nx]
        case .v2: Self.v1.required.union([.cx16, .lahf, .popcnt, .sse3, .sse41, .sse42, .ssse3])
        case .v3:
            Self.v2.required.union([.avx, .avx2, .bmi1, .bmi2, .f16c, .fma, .lzcnt, .movbe, .xsave])
        case .v4: Self.v3.required.union([.avx512f, .avx512bw, .avx512cd, .avx512dq, .avx512vl])
        }
    }

    /// What it may show.
    var allowed: CPUFeatures {
        switch self {
        case .v1: required.union(Self.system)
        case .v2: required.union(Self.v1.allowed).union([.aes, .pclmulqdq, .sha])
        case .v3: required.union(Self.v2.allowed).union([.adx, .vaes, .vpclmulqdq, .xsaveopt, .xsavec, .xgetbv1, .xsaves])
        case .v4: required.union(Self.v3.allowed).union(.avx512).union([.gfni])
        case .host: .all
        }
    }

    /// The next lower level, which the default falls back to.
    var lower: CPUModel? {
        switch self {
        case .v4: .v3
        case .v3: .v2
        case .v2: .v1
        case .v1, .host: nil
        }
    }

    /// What kernels use, and programs that ask for it by name: it does not belong to a level.
    private static let system: CPUFeatures = [
        .vme, .de, .sep, .mtrr, .pat, .pse36, .clfsh, .fsgsbase, .smep, .smap, .umip, .erms, .fsrm, .pdpe1gb, .rdtscp, .rdpid,
        .rdrand, .rdseed, .invariantTSC, .fdpExceptionOnly, .zeroFCSFDS, .clflushopt, .clwb, .prefetchw, .mdClear,
        .restoreFPErrorPointers, .lfenceSerializing, .ffxsr,
    ]
}

/// Why there is no CPU for this guest. The text is a sentence for the user.
public enum CPUPolicyError: Error, Hashable, Sendable, CustomStringConvertible {
    case unknownModel(String)
    /// `best` is the highest level that would work, if any does.
    case missingInHost(CPUModel, CPUFeatures, best: CPUModel?)
    case missingInEngine(CPUModel, CPUFeatures, engine: String, best: CPUModel?)

    public var description: String {
        switch self {
        case .unknownModel(let name):
            "CPU model '\(name)' is unknown: use one of \(CPUModel.allCases.map(\.rawValue).joined(separator: ", "))"
        case .missingInHost(let model, let features, let best):
            "CPU model \(model): this host's CPU lacks \(features.names.joined(separator: " "))"
                + Self.advice(best)
        case .missingInEngine(let model, let features, let engine, let best):
            "CPU model \(model): the \(engine) engine lacks \(features.names.joined(separator: " ")) on this host"
                + Self.advice(best)
        }
    }

    private static func advice(_ best: CPUModel?) -> String {
        best.map { "; use \($0)" } ?? "; no CPU model works here"
    }
}
