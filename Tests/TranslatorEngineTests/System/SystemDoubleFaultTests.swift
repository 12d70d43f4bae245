import Testing
import TranslatorEngine
import VMM

/// What becomes of a second exception while the first is being delivered (SDM Vol. 3, table 6-5), for all combinations
/// and every way to the second.
@Suite("Exceptions during delivery") struct SystemDoubleFaultTests {
    typealias M = SystemMachine

    enum Severity: CaseIterable, Sendable { case benign, contributory, pageFault }

    /// What is wrong with the first exception's gate or stack, and what that raises.
    enum Obstacle: CaseIterable, Sendable {
        case absentGate, wrongType, codeSelector, stackNotCanonical, shortTaskState, unmappedStack

        var vector: UInt8 {
            switch self {
            case .absentGate: 11
            case .wrongType, .codeSelector: 13
            case .stackNotCanonical: 12
            case .shortTaskState: 10
            case .unmappedStack: 14
            }
        }
        /// The error code, with EXT set, since the first is no software interrupt.
        func code(_ first: UInt8) -> UInt64 {
            switch self {
            case .absentGate, .wrongType: UInt64(first) << 3 | 3
            case .codeSelector: UInt64(M.kernelData) | 1
            case .stackNotCanonical: 1
            case .shortTaskState: UInt64(M.tssSelector) | 1
            case .unmappedStack: 2
            }
        }
    }

    static let firsts: [(exception: GuestException, severity: Severity)] =
        ([1, 5, 6, 7, 16, 18, 19] as [UInt8]).map { (GuestException(vector: $0), .benign) }
        + [(.alignmentCheck, .benign), (.divideError, .contributory), (.invalidTSS(0x40), .contributory)]
        + [(.segmentNotPresent(0x38), .contributory), (.stackFault(), .contributory), (.generalProtection(), .contributory)]
        + [(.pageFault(0x1234, 6), .pageFault)]

    private static let unmapped: UInt64 = 0x4000_0000

    /// Handlers for everything, each at its own place, and an obstacle in one vector's way.
    private func machine(_ vector: UInt8, _ obstacle: Obstacle) throws -> SystemMachine {
        let m = try M()
        for vector in 0..<32 as Range<UInt8> { m.setGate(vector, Self.handler(vector)) }
        let place = Self.handler(vector)
        switch obstacle {
        case .absentGate: m.setGate(vector, place, present: false)
        case .wrongType: m.setGate(vector, place, type: 12)
        case .codeSelector: m.setGate(vector, place, selector: M.kernelData)
        case .stackNotCanonical:
            m.setGate(vector, place, ist: 2)
            m.memory.store(M.tss + 0x2C, 0x8000_0000_0000_0000 as UInt64)
        case .shortTaskState:
            m.setGate(vector, place, ist: 7)
            m.context.pointee.tr.limit = 0x40
        case .unmappedStack:
            m.setGate(vector, place, ist: 2)
            m.memory.store(M.tss + 0x2C, Self.unmapped)
        }
        return m
    }
    private static func handler(_ vector: UInt8) -> UInt64 { 0x30_0000 + UInt64(vector) * 16 }

    @Test(arguments: firsts.indices, Obstacle.allCases)
    func `second exception is delivered or makes a double fault`(index: Int, obstacle: Obstacle) throws {
        let (first, severity) = Self.firsts[index]
        let m = try machine(first.vector, obstacle)
        // A page fault behind anything but a page fault is delivered; of the others only what follows a benign one.
        let isDouble =
            switch severity {
            case .benign: false
            case .contributory: obstacle.vector != 14
            case .pageFault: true
            }
        m.context.pointee.rflags = 0x202
        try m.cpu.deliver(first)
        let expected: UInt8 = isDouble ? 8 : obstacle.vector
        #expect(m.context.pointee.rip == Self.handler(expected))
        #expect(m.stack(2) == [isDouble ? 0 : obstacle.code(first.vector), M.code])
        #expect(m.context.pointee.gpr[4] == M.kernelStack - 48)
        // CR2 is the last page fault's, delivered or not.
        if obstacle.vector == 14 {
            #expect(m.context.pointee.cr2 &- (Self.unmapped - 64) < 64)
        } else if first.vector == 14 {
            #expect(m.context.pointee.cr2 == 0x1234)
        }
    }

    @Test(arguments: Obstacle.allCases) func `anything during a double fault's delivery is a triple fault`(obstacle: Obstacle) throws {
        let m = try machine(8, obstacle)
        m.setGate(13, 0, present: false)
        let before = m.registers
        #expect(throws: TripleFault.self) { try m.cpu.deliver(.generalProtection()) }
        #expect(m.registers == before)
        #expect(m.context.pointee.rip == M.code)
    }

    @Test(arguments: [([0xCC], 3), ([0xCD, 0x30], 0x30)] as [([UInt8], UInt64)])
    func `software interrupts report their gate without EXT, and are undone`(bytes: [UInt8], vector: UInt64) throws {
        let m = try M()
        m.setGate(UInt8(vector), 0x30_0000, present: false)
        let fault = bytes.count == 1 ? try m.fault(bytes[0]) : try m.fault(bytes[0], bytes[1])
        #expect(fault == .segmentNotPresent(UInt32(vector) << 3 | 2))
    }

    @Test func `external interrupt and NMI are benign`() throws {
        for (deliver, vector) in [({ try $0.cpu.deliverNMI() }, 2), ({ try $0.cpu.deliverInterrupt(vector: 0x1F) }, 0x1F)]
            as [((SystemMachine) throws -> Void, UInt8)]
        {
            for obstacle in Obstacle.allCases {
                let m = try machine(vector, obstacle)
                try deliver(m)
                #expect(m.context.pointee.rip == Self.handler(obstacle.vector))
                #expect(m.stack(2) == [obstacle.code(vector), M.code])
            }
        }
    }

    // MARK: Stacks

    private static let second: UInt64 = 0x1A_0000

    @Test func `double fault inside of an NMI takes its own stack, and its IRET unblocks NMIs`() throws {
        let m = try M()
        m.memory.store(M.tss + 0x2C, Self.second)
        m.setGate(2, 0x30_0000, ist: 2)
        m.setGate(8, 0x31_0000, ist: 1)
        m.context.pointee.rflags = 0x202
        try m.cpu.deliverNMI()
        #expect(m.context.pointee.gpr[4] == Self.second - 40)
        try m.cpu.deliver(.generalProtection())
        #expect(m.context.pointee.rip == 0x31_0000)
        #expect(m.context.pointee.gpr[4] == M.interruptStack - 48)
        #expect(m.stack(5) == [0, 0x30_0000, 8, 0x1_0002, Self.second - 40] || m.stack(5) == [0, 0x30_0000, 8, 2, Self.second - 40])
        #expect(m.context.pointee.nmiBlocked)
        // The handler takes the error code off its stack and returns into the NMI's.
        m.context.pointee.gpr[4] += 8
        try m.run(0x48, 0xCF)
        #expect(m.context.pointee.gpr[4] == Self.second - 40)
        #expect(!m.context.pointee.nmiBlocked)
        #expect(m.context.pointee.rip == 0x30_0000)
        // Now another NMI overwrites the first one's frame: that is what the table's fixed stacks do.
        try m.cpu.deliverNMI()
        #expect(m.context.pointee.gpr[4] == Self.second - 40)
        #expect(m.stack(4) == [0x30_0000, 8, 2, Self.second - 40] || m.stack(4) == [0x30_0000, 8, 0x1_0002, Self.second - 40])
    }

    @Test func `interrupt stack of level 3 code leaves RSP0 alone, and what follows without one goes on below it`() throws {
        let m = try M(level: 3)
        m.setGate(14, 0x30_0000, ist: 1)
        m.setGate(6, 0x31_0000)
        try m.cpu.deliver(.pageFault(0x1000, 4))
        #expect(m.stack(6) == [4, M.code, 0x2B, 0x1_0002, M.userStack, 0x23])
        #expect(m.context.pointee.gpr[4] == M.interruptStack - 48)
        try m.cpu.deliver(.invalidOpcode)
        #expect(m.context.pointee.gpr[4] == M.interruptStack - 48 - 40)
        #expect(m.stack(4) == [0x30_0000, 8, 0x1_0002, M.interruptStack - 48])
    }
}
