import Testing
import TranslatorEngine
import VMM

/// An instruction of an extension, as the manuals encode it, and the CPUID bits that show it.
struct ExtensionInstruction: CustomTestStringConvertible, Sendable {
    let name: String
    /// `nil`: no guest is shown it.
    let features: CPUFeatures?
    let bytes: [UInt8]
    init(_ name: String, _ features: CPUFeatures?, _ bytes: UInt8...) {
        (self.name, self.features, self.bytes) = (name, features, bytes)
    }
    var testDescription: String { name }

    static let all: [ExtensionInstruction] = [
        .init("addsubps", [.sse3], 0xF2, 0x0F, 0xD0, 0xC1), .init("fisttp", [.sse3], 0xDB, 0x0F),
        .init("pshufb", [.ssse3], 0x66, 0x0F, 0x38, 0x00, 0xC1), .init("pabsb mmx", [.ssse3], 0x0F, 0x38, 0x1C, 0xC1),
        .init("pmulld", [.sse41], 0x66, 0x0F, 0x38, 0x40, 0xC1), .init("pcmpgtq", [.sse42], 0x66, 0x0F, 0x38, 0x37, 0xC1),
        .init("crc32", [.sse42], 0xF2, 0x0F, 0x38, 0xF1, 0xC1), .init("popcnt", [.popcnt], 0xF3, 0x0F, 0xB8, 0xC1),
        .init("cmpxchg16b", [.cx16], 0x48, 0x0F, 0xC7, 0x0F), .init("lahf", [.lahf], 0x9F), .init("sahf", [.lahf], 0x9E),
        .init("aesenc", [.aes], 0x66, 0x0F, 0x38, 0xDC, 0xC1), .init("pclmulqdq", [.pclmulqdq], 0x66, 0x0F, 0x3A, 0x44, 0xC1, 0),
        .init("sha256rnds2", [.sha], 0x0F, 0x38, 0xCB, 0xC1), .init("movbe", [.movbe], 0x0F, 0x38, 0xF0, 0x07),
        .init("adcx", [.adx], 0x66, 0x0F, 0x38, 0xF6, 0xC1), .init("andn", [.bmi1], 0xC4, 0xE2, 0x70, 0xF2, 0xC1),
        .init("blsr", [.bmi1], 0xC4, 0xE2, 0x70, 0xF3, 0xC9), .init("shlx", [.bmi2], 0xC4, 0xE2, 0x71, 0xF7, 0xC1),
        .init("vaddps", [.avx], 0xC5, 0xF0, 0x58, 0xC1), .init("vzeroupper", [.avx], 0xC5, 0xF8, 0x77),
        .init("vpaddd ymm", [.avx2], 0xC5, 0xF5, 0xFE, 0xC1), .init("vpgatherdd", [.avx2], 0xC4, 0xE2, 0x69, 0x90, 0x04, 0x0F),
        .init("vfmadd213ps", [.fma], 0xC4, 0xE2, 0x71, 0xA8, 0xC1), .init("vcvtph2ps", [.f16c], 0xC4, 0xE2, 0x79, 0x13, 0xC1),
        .init("vaesenc xmm", [.avx, .aes], 0xC4, 0xE2, 0x71, 0xDC, 0xC1), .init("vaesenc ymm", [.vaes], 0xC4, 0xE2, 0x75, 0xDC, 0xC1),
        .init("vpclmulqdq ymm", [.vpclmulqdq], 0xC4, 0xE3, 0x75, 0x44, 0xC1, 0),
        .init("gf2p8mulb", [.gfni], 0x66, 0x0F, 0x38, 0xCF, 0xC1), .init("vgf2p8mulb", [.gfni, .avx], 0xC4, 0xE2, 0x71, 0xCF, 0xC1),
        .init("rdrand", [.rdrand], 0x0F, 0xC7, 0xF0), .init("rdseed", [.rdseed], 0x0F, 0xC7, 0xF8),
        .init("rdfsbase", [.fsgsbase], 0xF3, 0x48, 0x0F, 0xAE, 0xC0), .init("rdpid", [.rdpid], 0xF3, 0x0F, 0xC7, 0xF8),
        .init("rdtscp", [.rdtscp], 0x0F, 0x01, 0xF9), .init("xsave", [.xsave], 0x0F, 0xAE, 0x27),
        .init("xgetbv", [.xsave], 0x0F, 0x01, 0xD0), .init("xsaveopt", [.xsaveopt], 0x0F, 0xAE, 0x37),
        .init("clflushopt", [.clflushopt], 0x66, 0x0F, 0xAE, 0x3F), .init("clwb", [.clwb], 0x66, 0x0F, 0xAE, 0x37),
        .init("vaddps zmm", [.avx512f], 0x62, 0xF1, 0x74, 0x48, 0x58, 0xC1), .init("kandw", [.avx512f], 0xC5, 0xEC, 0x41, 0xD9),
        .init("vaddps zmm {k1}, memory", [.avx512f], 0x62, 0xF1, 0x74, 0x49, 0x58, 0x07),
        .init("vaddps xmm16", [.avx512f, .avx512vl], 0x62, 0xA1, 0x7C, 0x00, 0x58, 0xC1), .init("kmovw", [.avx512f], 0xC5, 0xF8, 0x92, 0xC9),
        .init("kmovb", [.avx512f, .avx512dq], 0xC5, 0xF9, 0x92, 0xC9), .init("kmovq", [.avx512f, .avx512bw], 0xC4, 0xE1, 0xFB, 0x92, 0xC9),
        .init("vmovdqu8 zmm", [.avx512f, .avx512bw], 0x62, 0xF1, 0x7F, 0x48, 0x6F, 0x0F),
        .init("vpconflictd zmm", [.avx512f, .avx512cd], 0x62, 0xF2, 0x7D, 0x48, 0xC4, 0xC1),
        .init("vpmullq zmm", [.avx512f, .avx512dq], 0x62, 0xF2, 0xF5, 0x48, 0x40, 0xC1),
        .init("vpmadd52luq zmm", [.avx512f, .avx512ifma], 0x62, 0xF2, 0xF5, 0x48, 0xB4, 0xC1),
        .init("vpermb zmm", [.avx512f, .avx512vbmi], 0x62, 0xF2, 0x75, 0x48, 0x8D, 0xC1),
        .init("vpshldd zmm", [.avx512f, .avx512vbmi2], 0x62, 0xF3, 0x75, 0x48, 0x71, 0xC1, 1),
        .init("vpdpbusd zmm", [.avx512f, .avx512vnni], 0x62, 0xF2, 0x75, 0x48, 0x50, 0xC1),
        .init("vpopcntb zmm", [.avx512f, .avx512bitalg], 0x62, 0xF2, 0x7D, 0x48, 0x54, 0xC1),
        .init("vpopcntd zmm", [.avx512f, .avx512vpopcntdq], 0x62, 0xF2, 0x7D, 0x48, 0x55, 0xC1),
        .init("vdpbf16ps zmm", [.avx512f, .avx512bf16], 0x62, 0xF2, 0x76, 0x48, 0x52, 0xC1),
        .init("vaddph zmm", [.avx512f, .avx512fp16], 0x62, 0xF5, 0x74, 0x48, 0x58, 0xC1),
        .init("vp2intersectd zmm", [.avx512f, .avx512vp2intersect], 0x62, 0xF2, 0x77, 0x48, 0x68, 0xC1),
        .init("vaesenc zmm", [.avx512f, .vaes], 0x62, 0xF2, 0x75, 0x48, 0xDC, 0xC1),
        .init("vgf2p8mulb zmm", [.avx512f, .gfni], 0x62, 0xF2, 0x75, 0x48, 0xCF, 0xC1),
        .init("vexp2ps (ER)", nil, 0x62, 0xF2, 0x7D, 0x48, 0xC8, 0xC1),
        .init("xsavec", [.xsave, .xsavec], 0x0F, 0xC7, 0x27), .init("rdpkru", nil, 0x0F, 0x01, 0xEE),
        .init("pfadd (3DNow!)", nil, 0x0F, 0x0F, 0xC1, 0x9E), .init("extrq (SSE4A)", nil, 0x66, 0x0F, 0x79, 0xC1),
        .init("blcfill (TBM)", nil, 0x8F, 0xE9, 0x70, 0x01, 0xC9), .init("vfmaddss (FMA4)", nil, 0xC4, 0xE3, 0xF1, 0x6A, 0xC1, 0x20),
        .init("vfrczps (XOP)", nil, 0x8F, 0xE9, 0x78, 0x80, 0xC1), .init("llwpcb", nil, 0x8F, 0xE9, 0x78, 0x12, 0xC0),
        .init("monitor", nil, 0x0F, 0x01, 0xC8), .init("monitorx", nil, 0x0F, 0x01, 0xFA), .init("clzero", nil, 0x0F, 0x01, 0xFC),
        .init("rdpru", nil, 0x0F, 0x01, 0xFD), .init("xbegin", nil, 0xC7, 0xF8, 0, 0, 0, 0), .init("xtest", nil, 0x0F, 0x01, 0xD6),
        .init("serialize", nil, 0x0F, 0x01, 0xE8), .init("movdiri", nil, 0x0F, 0x38, 0xF9, 0x07),
        .init("enqcmd", nil, 0xF2, 0x0F, 0x38, 0xF8, 0x07), .init("tpause", nil, 0x66, 0x0F, 0xAE, 0xF1),
        .init("vpdpbusd (AVX-VNNI)", nil, 0xC4, 0xE2, 0x71, 0x50, 0xC1), .init("tilezero", nil, 0xC4, 0xE2, 0x7B, 0x49, 0xC0),
        .init("vmcall", nil, 0x0F, 0x01, 0xC1), .init("vmrun", nil, 0x0F, 0x01, 0xD8), .init("vmmcall", nil, 0x0F, 0x01, 0xD9),
        .init("wrssd", nil, 0x0F, 0x38, 0xF6, 0x07), .init("incsspd", nil, 0xF3, 0x0F, 0xAE, 0xE8),
        .init("ptwrite", nil, 0xF3, 0x0F, 0xAE, 0xE0), .init("getsec", nil, 0x0F, 0x37), .init("enclu", nil, 0x0F, 0x01, 0xD7),
        .init("xstore (PadLock)", nil, 0x0F, 0xA7, 0xC0), .init("senduipi", nil, 0xF3, 0x0F, 0xC7, 0xF0),
    ]
}

/// What CPUID does not show raises #UD, and what it shows does not, in every CPU model.
@Suite("Hidden instructions") struct HiddenInstructionTests {
    private static let code: UInt64 = 0x40_0000
    private static let data: UInt64 = 0x41_0000

    /// `nil` where the host's CPU does not have the model.
    private static func machine(_ model: CPUModel) -> TestMachine? {
        guard let machine = try? TestMachine(model: model) else { return nil }
        machine.map(code, to: 0x10_0000, count: 1, [.user])
        machine.map(data, to: 0x11_0000, count: 2, [.user, .writable])
        return machine
    }

    private static func run(_ bytes: [UInt8], on machine: TestMachine) throws -> Outcome {
        machine.enter(level: 3)
        machine.memory.write(bytes + [0xCD, 0x80], at: 0x10_0000)
        // Written behind the translator's back.
        machine.cpu.writeState(machine.cpu.readState())
        machine[.rdi] = data
        machine[.rax] = 0x1000
        machine[.rcx] = 0
        machine[.rsp] = data + 4096
        return try machine.run(from: code)
    }

    @Test(arguments: CPUModel.allCases)
    func `instruction that CPUID hides raises #UD and one that it shows runs`(model: CPUModel) throws {
        guard let machine = Self.machine(model) else { return }
        let features = machine.cpu.policy.features
        for one in ExtensionInstruction.all {
            let isShown = one.features.map { $0.isSubset(of: features) } ?? false
            let outcome = try Self.run(one.bytes, on: machine)
            #expect(outcome.vector == (isShown ? Outcome.done : 6), "\(one.name) on \(model)")
            if !isShown { #expect(outcome.rip == Self.code, "\(one.name) on \(model)") }
        }
    }

    /// SDM Vol. 2, LZCNT and TZCNT: without them the prefix is ignored.
    @Test(arguments: CPUModel.allCases)
    func `hidden LZCNT and TZCNT are BSR and BSF`(model: CPUModel) throws {
        guard let machine = Self.machine(model) else { return }
        let features = machine.cpu.policy.features
        // lzcnt ecx, eax; tzcnt ecx, eax; the same with displaced registers
        for (bytes, plain, counted) in [
            ([0xF3, 0x0F, 0xBD, 0xC8], 12, 19), ([0xF3, 0x0F, 0xBC, 0xC8], 12, 12),
            ([0x41, 0x89, 0xC6, 0xF3, 0x44, 0x0F, 0xBD, 0xEE, 0x45, 0x89, 0xF5, 0xF3, 0x41, 0x0F, 0xBD, 0xCE], 12, 19),
        ] as [([UInt8], UInt64, UInt64)] {
            #expect(try Self.run(bytes, on: machine).vector == Outcome.done)
            #expect(machine[.rcx] == (features.contains(.lzcnt) ? counted : plain))
        }
        // Of zero: BSF leaves its destination alone, TZCNT gives the width.
        machine.enter(level: 3)
        #expect(try Self.run([0x31, 0xC0, 0xB9, 7, 0, 0, 0, 0xF3, 0x0F, 0xBC, 0xC8], on: machine).vector == Outcome.done)
        #expect(machine[.rcx] == (features.contains(.bmi1) ? 32 : 7))
    }
}
