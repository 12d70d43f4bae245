import TranslatorEngine
import VMM

/// Machine code with labels, for guests of a few instructions. What has no method is given as bytes.
struct GuestCode {
    private(set) var bytes: [UInt8] = []
    private var labels: [String: Int] = [:]
    /// Displacements of 32 bits to be filled in: where, behind how many more bytes the instruction ends, and whither.
    private var references: [(at: Int, behind: Int, label: String)] = []
    let base: UInt64

    init(at base: UInt64 = GuestCode.start) { self.base = base }

    static let start: UInt64 = 0x40_0000

    mutating func emit(_ new: UInt8...) { bytes += new }
    mutating func label(_ name: String) { labels[name] = bytes.count }
    /// A 32-bit displacement relative to the end of the instruction, `behind` bytes after it.
    mutating func reference(_ label: String, behind: Int = 0) {
        references.append((bytes.count, behind, label))
        bytes += [0, 0, 0, 0]
    }
    mutating func pad(to offset: Int, with filler: UInt8 = 0x90) {
        while bytes.count < offset { bytes.append(filler) }
    }

    /// `mov register, value`, always ten bytes long.
    mutating func load(_ register: GeneralRegister, _ value: UInt64) {
        let number = UInt8(register.rawValue)
        bytes += [0x48 | number >> 3, 0xB8 | number & 7]
        for byte in 0..<8 as Range<UInt64> { bytes.append(UInt8(truncatingIfNeeded: value >> (byte * 8))) }
    }
    mutating func jump(_ label: String) {
        emit(0xE9)
        reference(label)
    }
    mutating func jump(if condition: UInt8, _ label: String) {
        emit(0x0F, 0x80 | condition)
        reference(label)
    }
    mutating func call(_ label: String) {
        emit(0xE8)
        reference(label)
    }
    /// `int 0x80`: the end.
    mutating func done() { emit(0xCD, 0x80) }

    func address(of label: String) -> UInt64 { base + UInt64(labels[label] ?? 0) }

    /// The code with its references filled in.
    var linked: [UInt8] {
        var result = bytes
        for (at, behind, label) in references {
            let distance = (labels[label] ?? 0) - (at + 4 + behind)
            for byte in 0..<4 { result[at + byte] = UInt8(truncatingIfNeeded: distance >> (byte * 8)) }
        }
        return result
    }
}

extension TestMachine {
    static let codePhysical: UInt64 = 0x10_0000
    static let data: UInt64 = 0x60_0000
    static let dataPhysical: UInt64 = 0x20_0000
    static let stack: UInt64 = 0x70_0000

    /// A machine at CPL 0 with four writable pages of code at `GuestCode.start`, eight of data and two of stack.
    static func small(
        mmio: [MMIOBus.Claim] = [], ports: [PortBus.Claim] = [], model: CPUModel? = nil
    ) throws -> TestMachine {
        let machine = try TestMachine(mmio: mmio, ports: ports, codeByteCount: 4 << 20, model: model)
        machine.map(GuestCode.start, to: codePhysical, count: 4, [.writable, .user])
        machine.map(data, to: dataPhysical, count: 8, [.writable, .user])
        machine.map(stack - 8192, to: 0x30_0000, count: 2, [.writable, .user])
        machine[.rsp] = stack
        machine.watch(seconds: 10)
        return machine
    }

    func load(_ code: GuestCode) { memory.write(code.linked, at: Self.codePhysical + (code.base - GuestCode.start)) }

    /// Runs code to its end or first fault.
    @discardableResult
    func run(_ code: GuestCode) throws -> Outcome {
        load(code)
        // What was written behind the translator's back would not be seen.
        cpu.writeState(cpu.readState())
        return try run(from: code.base)
    }

    func data(_ offset: UInt64) -> UInt64 { memory.load(Self.dataPhysical + offset, as: UInt64.self) ?? 0 }
    func setData(_ offset: UInt64, _ value: UInt64) { memory.store(Self.dataPhysical + offset, value) }
}
