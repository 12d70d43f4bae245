import Testing
import TranslatorEngine
import VMM

/// Generated code addresses the context by numbers; they have to be those of the compiler's layout.
@Suite struct TranslatorContextTests {
    @Test func `offsets are those of the fields`() {
        func offset(_ path: PartialKeyPath<Context>) -> Int? { MemoryLayout<Context>.offset(of: path) }
        #expect(offset(\.gpr) == ContextOffset.gpr)
        #expect(offset(\.rip) == ContextOffset.rip)
        #expect(offset(\.ripPage) == ContextOffset.ripPage)
        #expect(offset(\.lahf) == ContextOffset.lahf)
        #expect(offset(\.interruptRequest) == ContextOffset.interruptRequest)
        #expect(offset(\.vectorsSaved) == ContextOffset.vectorsSaved)
        #expect(offset(\.jumpMask) == ContextOffset.jumpMask)
        #expect(offset(\.fsBase) == ContextOffset.fsBase)
        #expect(offset(\.gsBase) == ContextOffset.gsBase)
        #expect(offset(\.hostStack) == ContextOffset.hostStack)
        #expect(offset(\.spill) == ContextOffset.spill)
        #expect(offset(\.exitReason) == ContextOffset.exitReason)
        #expect(offset(\.owner) == ContextOffset.owner)
        #expect(offset(\.mxcsr) == ContextOffset.mxcsr)
        #expect(offset(\.hostMXCSR) == ContextOffset.hostMXCSR)
        #expect(offset(\.bounce) == ContextOffset.bounce)
        #expect(offset(\.ymm) == ContextOffset.ymm)
        #expect(offset(\.bounceScratch) == ContextOffset.bounceScratch)
        #expect(offset(\.bounceAddress) == ContextOffset.bounceAddress)
        #expect(offset(\.bounceVectors) == ContextOffset.bounceVectors)
        #expect(offset(\.temporary) == ContextOffset.temporary)
        #expect(offset(\.systemFlags) == ContextOffset.systemFlags)
        #expect(offset(\.interruptWaiting) == ContextOffset.interruptWaiting)
        #expect(offset(\.returnBase) == ContextOffset.returnBase)
        #expect(offset(\.returnLimit) == ContextOffset.returnLimit)
        #expect(offset(\.savedStack) == ContextOffset.savedStack)
        #expect(offset(\.wideState) == ContextOffset.wideState)
        #expect(offset(\.zmmHigh) == ContextOffset.zmmHigh)
        #expect(offset(\.zmmUpper) == ContextOffset.zmmUpper)
        #expect(offset(\.opmask) == ContextOffset.opmask)
        #expect(ContextOffset.zmmHigh % 64 == 0)
        #expect(ContextOffset.bounce % 64 == 0)
    }

    @Test func `the context ends before the TLBs begin`() {
        #expect(MemoryLayout<Context>.size <= ContextOffset.tlb)
        #expect(MemoryLayout<TLB.Entry>.stride == TLB.entrySize)
        #expect(MemoryLayout<TLB.Entry>.offset(of: \.readTag) == TLB.readTag)
        #expect(MemoryLayout<TLB.Entry>.offset(of: \.writeTag) == TLB.writeTag)
        #expect(MemoryLayout<TLB.Entry>.offset(of: \.host) == TLB.host)
        #expect(MemoryLayout<TLB.Entry>.offset(of: \.info) == TLB.info)
        #expect(MemoryLayout<JumpCache.Entry>.stride == JumpCache.entrySize)
        #expect(MemoryLayout<JumpCache.Entry>.offset(of: \.host) == 8)
    }

    @Test func `segment registers lie in encoding order`() {
        let paths: [PartialKeyPath<Context>] = [\.es, \.cs, \.ss, \.ds, \.fs, \.gs]
        for (number, path) in paths.enumerated() {
            #expect(
                MemoryLayout<Context>.offset(of: path)
                    == ContextOffset.selectors + number * MemoryLayout<SegmentRegister>.stride)
        }
        #expect(MemoryLayout<SegmentRegister>.offset(of: \.selector) == 0)
    }

    @Test func `descriptors have the size that generated code steps over`() {
        #expect(MemoryLayout<ExitDescriptor>.size == ExitDescriptor.size)
        #expect(MemoryLayout<MemoryDescriptor>.size == MemoryDescriptor.size)
    }

    @Test func `flags go through their packed form unchanged`() {
        var context = Context()
        for value in 0..<0x1000 as Range<UInt64> {
            let flags = value & 0xCD5 | 2 | (value & 0x22) << 12
            context.rflags = flags
            #expect(context.rflags == flags & 0x3F_7FD7 | 2)
        }
    }
}
