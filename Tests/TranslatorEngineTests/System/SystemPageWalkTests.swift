import Testing
import TranslatorEngine
import VMM

@Suite("Page walk") struct SystemPageWalkTests {
    typealias M = SystemMachine

    /// Maps one 4 KB page at linear 1 GB through tables of its own.
    static let linear: UInt64 = 0x4000_0000
    static let pte: UInt64 = 0x6000
    private func machine(pte: UInt64, pde: UInt64 = 7, pdpte: UInt64 = 7) throws -> SystemMachine {
        let m = try M()
        m.memory.store(0x2008, 0x5000 | pdpte)
        m.memory.store(0x5000, 0x6000 | pde)
        m.memory.store(Self.pte, pte)
        return m
    }

    private func fault(
        _ m: SystemMachine, _ access: PageAccess, user: Bool = false, exempt: Bool = false,
        at linear: UInt64 = SystemPageWalkTests.linear
    ) -> UInt32? {
        do throws(GuestException) {
            _ = try m.cpu.walk(linear, access: access, user: user, smapExempt: exempt)
            return nil
        } catch {
            #expect(error.vector == 14)
            #expect(error.address == linear)
            return error.errorCode
        }
    }

    @Test func `4 KB page gives its address, rights and size`() throws {
        let m = try machine(pte: 0x7000 | 7)
        let page = try m.cpu.walk(Self.linear + 0x123, access: .read, user: true, smapExempt: false)
        #expect(page == PageTranslation(physical: 0x7000, facts: [.writable, .user], sizeShift: 12))
    }

    @Test func `read sets accessed flags at all levels, write the dirty flag at the last`() throws {
        let m = try machine(pte: 0x7000 | 7)
        _ = try m.cpu.walk(Self.linear, access: .read, user: false, smapExempt: false)
        #expect(m.memory.load(Self.pte, as: UInt64.self) == 0x7027)
        #expect(m.memory.load(0x5000, as: UInt64.self) == 0x6027)
        #expect(m.memory.load(0x2008, as: UInt64.self) == 0x5027)
        #expect(m.memory.load(M.pageTables, as: UInt64.self) == 0x2027)
        let page = try m.cpu.walk(Self.linear, access: .write, user: false, smapExempt: false)
        #expect(m.memory.load(Self.pte, as: UInt64.self) == 0x7067)
        #expect(page.facts.contains(.dirty))
    }

    @Test func `refused access leaves accessed and dirty flags of the page alone`() throws {
        let m = try machine(pte: 0x7000 | 5)
        #expect(fault(m, .write, user: true) == 7)
        #expect(m.memory.load(Self.pte, as: UInt64.self) == 0x7005)
    }

    @Test(arguments: [
        (PageAccess.read, false, 0), (.write, false, 2), (.read, true, 4), (.write, true, 6), (.execute, true, 0x14),
    ] as [(PageAccess, Bool, UInt32)])
    func `page that is not present reports the access`(access: PageAccess, user: Bool, code: UInt32) throws {
        #expect(fault(try machine(pte: 0), access, user: user) == code)
    }

    @Test func `supervisor page is closed to the user`() throws {
        #expect(fault(try machine(pte: 0x7003), .read, user: true) == 5)
        #expect(fault(try machine(pte: 0x7007, pde: 3), .read, user: true) == 5)
    }

    @Test func `write protection binds the supervisor only with CR0_WP`() throws {
        let m = try machine(pte: 0x7001)
        #expect(fault(m, .write) == 3)
        m.context.pointee.cr0 &= ~CR0.wp
        #expect(fault(m, .write) == nil)
        #expect(fault(try machine(pte: 0x7007, pde: 5), .write, user: true) == 7)
    }

    @Test func `no-execute at any level stops fetches, and is reserved without EFER_NXE`() throws {
        for m in [try machine(pte: 1 << 63 | 0x7007), try machine(pte: 0x7007, pdpte: 1 << 63 | 7)] {
            #expect(fault(m, .execute, user: true) == 0x15)
            #expect(fault(m, .read) == nil)
            let page = try m.cpu.walk(Self.linear, access: .read, user: true, smapExempt: false)
            #expect(page.facts.contains(.noExecute))
            m.context.pointee.msr.efer &= ~EFER.nxe
            #expect(fault(m, .read) == 9)
        }
    }

    @Test func `SMEP stops supervisor fetches, SMAP supervisor data accesses unless exempt`() throws {
        let m = try machine(pte: 0x7007)
        #expect(fault(m, .execute) == nil)
        #expect(fault(m, .read) == nil)
        m.context.pointee.cr4 |= CR4.smep | CR4.smap
        #expect(fault(m, .execute) == 0x11)
        #expect(fault(m, .read) == 1)
        #expect(fault(m, .write) == 3)
        #expect(fault(m, .write, exempt: true) == nil)
        #expect(fault(m, .read, user: true) == nil)
    }

    @Test func `address bits beyond MAXPHYADDR are reserved`() throws {
        let width = UInt64(try M().cpu.policy.physicalAddressBits)
        #expect(fault(try machine(pte: 1 << width | 0x7007), .read, user: true) == 0xD)
        #expect(fault(try machine(pte: 0x7007, pde: 1 << 51 | 7), .write) == 0xB)
    }

    @Test func `2 MB and 1 GB pages give the 4 KB piece`() throws {
        let m = try machine(pte: 0)
        m.memory.store(0x5000, 0x80_0000 | 0x187 as UInt64)
        let page = try m.cpu.walk(Self.linear + 0x12_3456, access: .read, user: false, smapExempt: false)
        #expect(page == PageTranslation(physical: 0x92_3000, facts: [.writable, .user, .global], sizeShift: 21))
        m.memory.store(0x2008, 0x8000_0083 as UInt64)
        let big = try m.cpu.walk(Self.linear + 0x1234_5678, access: .write, user: false, smapExempt: false)
        #expect(big == PageTranslation(physical: 0x9234_5000, facts: [.writable, .dirty], sizeShift: 30))
        #expect(m.memory.load(0x2008, as: UInt64.self) == 0x8000_00E3)
    }

    @Test func `low address bits of large pages are reserved, PAT is not`() throws {
        let m = try machine(pte: 0)
        m.memory.store(0x5000, 0x80_2083 as UInt64)
        #expect(fault(m, .read) == 9)
        m.memory.store(0x5000, 0x80_1083 as UInt64)
        #expect(fault(m, .read) == nil)
        m.memory.store(M.pageTables, 0x2087 as UInt64)
        #expect(fault(m, .read) == 9)
    }

    @Test func `tables outside of RAM read as all ones`() throws {
        let m = try machine(pte: 0)
        m.memory.store(0x5000, 0x1000_0007 as UInt64)
        #expect(fault(m, .read) == 9)
    }

    @Test func `without paging addresses are physical`() throws {
        let m = try M(.protected32)
        let page = try m.cpu.walk(0x1234_5678, access: .write, user: false, smapExempt: false)
        #expect(page.physical == 0x1234_5000)
        #expect(page.facts == [.writable, .user, .dirty])
    }

    // MARK: 32-bit paging

    private func narrow() throws -> SystemMachine {
        let m = try M(.protected32)
        m.context.pointee.cr0 |= CR0.pg
        m.context.pointee.cr3 = 0x4000
        m.context.pointee.cr4 = CR4.pse
        return m
    }

    @Test func `two-level tables translate and keep accessed and dirty flags`() throws {
        let m = try narrow()
        m.memory.store(0x4004, 0x5007 as UInt32)
        m.memory.store(0x5008, 0x9003 as UInt32)
        let page = try m.cpu.walk(0x40_2123, access: .write, user: false, smapExempt: false)
        #expect(page == PageTranslation(physical: 0x9000, facts: [.writable, .dirty], sizeShift: 12))
        #expect(m.memory.load(0x5008, as: UInt32.self) == 0x9063)
        #expect(m.memory.load(0x4004, as: UInt32.self) == 0x5027)
        #expect(fault(m, .read, user: true, at: 0x40_2000) == 5)
        #expect(fault(m, .execute, user: true, at: 0x40_3000) == 4)
    }

    @Test func `4 MB pages reach 36 bits, and need CR4_PSE`() throws {
        let m = try narrow()
        m.memory.store(0x4004, 0x00C0_2087 as UInt32)
        let page = try m.cpu.walk(0x7F_F123, access: .read, user: true, smapExempt: false)
        #expect(page == PageTranslation(physical: 0x1_00FF_F000, facts: [.writable, .user], sizeShift: 22))
        m.memory.store(0x4004, 0x00E0_0087 as UInt32)
        #expect(fault(m, .read, at: 0x40_0000) == 9)
        m.context.pointee.cr4 = 0
        m.memory.store(0x4004, 0x0000_5087 as UInt32)
        m.memory.store(0x5000, 0x9007 as UInt32)
        #expect(try m.cpu.walk(0x40_0000, access: .read, user: true, smapExempt: false).physical == 0x9000)
    }

    @Test func `PAE tables translate, and their top entries hold no rights`() throws {
        let m = try narrow()
        m.context.pointee.cr4 = CR4.pae
        m.context.pointee.cr3 = 0x4020
        m.memory.store(0x4028, 0x5001 as UInt64)
        m.memory.store(0x5000, 0x6007 as UInt64)
        m.memory.store(0x6000, 0x9007 as UInt64)
        // Without values of its own the registers are loaded from memory, as MOV to CR3 does it.
        var state = m.cpu.readState()
        state.pageDirectoryPointers = nil
        m.cpu.writeState(state)
        let page = try m.cpu.walk(0x4000_0000, access: .write, user: true, smapExempt: false)
        #expect(page == PageTranslation(physical: 0x9000, facts: [.writable, .user, .dirty], sizeShift: 12))
        #expect(m.memory.load(0x4028, as: UInt64.self) == 0x5001)
        m.memory.store(0x6000, 1 << 55 | 0x9007 as UInt64)
        #expect(fault(m, .read) == 9)
        // The top entries are not read again until CR3 is loaded, which checks them.
        m.memory.store(0x4028, 0x5003 as UInt64)
        m.memory.store(0x6000, 0x9007 as UInt64)
        #expect(fault(m, .read) == nil)
        m.context.pointee.gpr[0] = 0x4020
        #expect(try m.fault(0x0F, 0x22, 0xD8) == .generalProtection())
        m.memory.store(0x4028, 0 as UInt64)
        try m.run(0x0F, 0x22, 0xD8)
        #expect(fault(m, .read) == 0)
        #expect(fault(m, .read, at: 0x8000_0000) == 0)
    }
}
