import Testing
import TranslatorEngine
import VMM

/// Device memory and ports as instructions reach them: how often, how wide and in which order.
@Suite struct GuestDeviceTests {
    /// Linear address of the device's first page; the page before it is RAM.
    private static let device: UInt64 = 0x51_0000
    private static let devicePhysical: UInt64 = 0xE000_0000

    private func machine() throws -> (TestMachine, RecordingDevice) {
        let device = RecordingDevice()
        let machine = try TestMachine.small(
            mmio: [.init(Self.devicePhysical..<Self.devicePhysical + 0x1000, device)],
            ports: [.init(0x60...0x67, device)])
        machine.map(Self.device - 0x1000, to: TestMachine.dataPhysical, [.writable])
        // The second page is one that no device claims.
        machine.map(Self.device, to: Self.devicePhysical, count: 2, [.writable])
        return (machine, device)
    }

    private typealias Access = RecordingDevice.Access

    struct Row: CustomTestStringConvertible {
        let testDescription: String
        let bytes: [UInt8]
        let accesses: [RecordingDevice.Access]
        init(_ name: String, _ bytes: [UInt8], _ accesses: [RecordingDevice.Access]) {
            testDescription = name
            self.bytes = bytes
            self.accesses = accesses
        }
    }

    /// With rsi at the device, rax = 0x8877665544332211; the device reads 0xA5 in every byte.
    static let rows: [Row] = [
        Row("mov [rsi], al", [0x88, 0x06], [.write(0, .byte, 0x11)]),
        Row("mov [rsi + 2], ax", [0x66, 0x89, 0x46, 2], [.write(2, .word, 0x2211)]),
        Row("mov [rsi + 4], eax", [0x89, 0x46, 4], [.write(4, .dword, 0x4433_2211)]),
        Row("mov [rsi + 8], rax", [0x48, 0x89, 0x46, 8], [.write(8, .qword, 0x8877_6655_4433_2211)]),
        Row("mov [rsi], dword 5", [0xC7, 0x06, 5, 0, 0, 0], [.write(0, .dword, 5)]),
        Row("mov al, [rsi]", [0x8A, 0x06], [.read(0, .byte)]),
        Row("mov ax, [rsi + 2]", [0x66, 0x8B, 0x46, 2], [.read(2, .word)]),
        Row("mov eax, [rsi + 4]", [0x8B, 0x46, 4], [.read(4, .dword)]),
        Row("mov rax, [rsi + 8]", [0x48, 0x8B, 0x46, 8], [.read(8, .qword)]),
        Row("movzx eax, byte [rsi + 3]", [0x0F, 0xB6, 0x46, 3], [.read(3, .byte)]),
        Row("test [rsi], eax", [0x85, 0x06], [.read(0, .dword)]),
        Row("cmp byte [rsi], 5", [0x80, 0x3E, 5], [.read(0, .byte)]),
        Row("add [rsi], eax", [0x01, 0x06], [.read(0, .dword), .write(0, .dword, 0xE9D8_C7B6)]),
        Row("lock inc word [rsi]", [0xF0, 0x66, 0xFF, 0x06], [.read(0, .word), .write(0, .word, 0xA5A6)]),
        Row("xchg [rsi], rax", [0x48, 0x87, 0x06], [.read(0, .qword), .write(0, .qword, 0x8877_6655_4433_2211)]),
        Row("cmpxchg [rsi], ecx, unequal", [0x0F, 0xB1, 0x0E], [.read(0, .dword), .write(0, .dword, 0xA5A5_A5A5)]),
        Row("bts dword [rsi], 33 in ecx", [0xB9, 33, 0, 0, 0, 0x0F, 0xAB, 0x0E], [.read(4, .dword), .write(4, .dword, 0xA5A5_A5A7)]),
        Row("movups xmm0, [rsi]", [0x0F, 0x10, 0x06], [.read(0, .qword), .read(8, .qword)]),
        Row("vmovdqu [rsi], ymm0", [0xC5, 0xFD, 0xEF, 0xC0, 0xC5, 0xFE, 0x7F, 0x06], [
            .write(0, .qword, 0), .write(8, .qword, 0), .write(16, .qword, 0), .write(24, .qword, 0),
        ]),
        Row("mov [rsi + 1], eax", [0x89, 0x46, 1], [.write(1, .byte, 0x11), .write(2, .word, 0x3322), .write(4, .byte, 0x44)]),
        Row("push qword [rsi]", [0xFF, 0x36], [.read(0, .qword)]),
        Row("pop qword [rsi]", [0x50, 0x8F, 0x06], [.write(0, .qword, 0x8877_6655_4433_2211)]),
        Row("push on a device", [0x48, 0x8D, 0x66, 0x10, 0x50], [.write(8, .qword, 0x8877_6655_4433_2211)]),
        Row("stosd", [0x48, 0x89, 0xF7, 0xAB], [.write(0, .dword, 0x4433_2211)]),
        Row("rep stosb", [0x48, 0x89, 0xF7, 0xB9, 3, 0, 0, 0, 0xF3, 0xAA], [
            .write(0, .byte, 0x11), .write(1, .byte, 0x11), .write(2, .byte, 0x11),
        ]),
        Row("lodsw", [0x66, 0xAD], [.read(0, .word)]),
        Row("rep movsd from a device", [0x48, 0x8D, 0xBE, 0, 0xF0, 0xFF, 0xFF, 0xB9, 2, 0, 0, 0, 0xF3, 0xA5], [
            .read(0, .dword), .read(4, .dword),
        ]),
        Row("fld qword [rsi]", [0xDD, 0x06, 0xDD, 0xD8], [.read(0, .qword)]),
        Row("movnti [rsi], eax", [0x0F, 0xC3, 0x06], [.write(0, .dword, 0x4433_2211)]),
        Row("setc byte [rsi]", [0xF9, 0x0F, 0x92, 0x06], [.write(0, .byte, 1)]),
        Row("cmovc eax, [rsi], not taken", [0xF8, 0x0F, 0x42, 0x06], [.read(0, .dword)]),
        Row("prefetch [rsi]", [0x0F, 0x18, 0x0E], []),
        Row("mov r13, [rsi]; mov [rsi], r13", [0x4C, 0x8B, 0x2E, 0x4C, 0x89, 0x2E], [
            .read(0, .qword), .write(0, .qword, 0xA5A5_A5A5_A5A5_A5A5),
        ]),
        Row("add [rsi], r14; adc keeps the carry", [0x4D, 0x31, 0xF6, 0xF9, 0x4C, 0x11, 0x36], [
            .read(0, .qword), .write(0, .qword, 0xA5A5_A5A5_A5A5_A5A6),
        ]),
        Row("across RAM and device, store", [0x48, 0x89, 0x46, 0xFC], [.write(0, .dword, 0x8877_6655)]),
        Row("across RAM and device, load", [0x48, 0x8B, 0x46, 0xFD], [.read(0, .dword), .read(4, .byte)]),
    ]

    @Test(arguments: rows) func `an instruction makes the accesses that its operand stands for`(row: Row) throws {
        let (machine, device) = try machine()
        var code = GuestCode()
        code.load(.rsi, Self.device)
        code.load(.rax, 0x8877_6655_4433_2211)
        for byte in row.bytes { code.emit(byte) }
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(device.accesses == row.accesses)
    }

    @Test func `values from a device arrive`() throws {
        let (machine, device) = try machine()
        machine.setData(0xFF8, 0x1122_3344_5566_7788)
        var code = GuestCode()
        code.load(.rsi, Self.device)
        code.load(.rax, 0)
        code.emit(0x8A, 0x26)  // mov ah, [rsi]
        code.emit(0x48, 0x8B, 0x5E, 0xFC)  // mov rbx, [rsi - 4]
        code.emit(0x44, 0x0F, 0xB7, 0x2E)  // movzx r13d, word [rsi]
        code.emit(0x4C, 0x63, 0x3E)  // movsxd r15, dword [rsi]
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rax] == 0xA500)
        #expect(machine[.rbx] == 0xA5A5_A5A5_1122_3344)
        #expect(machine[.r13] == 0xA5A5)
        #expect(machine[.r15] == 0xFFFF_FFFF_A5A5_A5A5)
        #expect(device.accesses.count == 4)
    }

    @Test func `a store across RAM and a device writes both`() throws {
        let (machine, device) = try machine()
        machine.setData(0xFF8, 0)
        var code = GuestCode()
        code.load(.rsi, Self.device - 3)
        code.load(.rax, 0x8877_6655_4433_2211)
        code.emit(0x48, 0x89, 0x06)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine.data(0xFF8) == 0x3322_1100_0000_0000)
        #expect(device.accesses == [.write(0, .dword, 0x7766_5544), .write(4, .byte, 0x88)])
    }

    @Test func `addresses that nobody claims read all ones and swallow writes`() throws {
        let (machine, device) = try machine()
        var code = GuestCode()
        code.load(.rsi, Self.device + 0x1000)
        code.emit(0x48, 0x89, 0x06)
        code.emit(0x48, 0x8B, 0x1E)
        code.emit(0x0F, 0xB6, 0x0E)
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(machine[.rbx] == ~0)
        #expect(machine[.rcx] == 0xFF)
        #expect(device.accesses.isEmpty)
    }

    @Test func `a fault behind a device's page keeps the device from being touched`() throws {
        let (machine, device) = try machine()
        machine.unmap(Self.device + 0x1000)
        var code = GuestCode()
        code.load(.rsi, Self.device + 0xFFC)
        code.emit(0x48, 0x89, 0x06)
        code.done()
        let outcome = try machine.run(code)
        #expect(outcome.vector == 14)
        #expect(outcome.address == Self.device + 0x1000)
        #expect(device.accesses.isEmpty)
    }

    @Test func `code in device memory is no code`() throws {
        let (machine, _) = try machine()
        var code = GuestCode()
        code.load(.rsi, Self.device)
        code.emit(0xFF, 0xE6)
        let outcome = try machine.run(code)
        #expect(outcome.vector == 6)
        #expect(outcome.rip == Self.device)
    }

    @Test func `ports are reached at their widths`() throws {
        let (machine, device) = try machine()
        var code = GuestCode()
        code.load(.rax, 0x4433_2211)
        code.load(.rdx, 0x62)
        code.emit(0xE6, 0x60)  // out 0x60, al
        code.emit(0x66, 0xEF)  // out dx, ax
        code.emit(0xE7, 0x64)  // out 0x64, eax
        code.emit(0xEC)  // in al, dx
        code.emit(0x89, 0xC3)  // mov ebx, eax
        code.emit(0x66, 0xE5, 0x60)  // in ax, 0x60
        code.emit(0x89, 0xC1)
        code.emit(0xED)  // in eax, dx
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(device.accesses == [
            .write(0, .byte, 0x11), .write(2, .word, 0x2211), .write(4, .dword, 0x4433_2211), .read(2, .byte), .read(0, .word),
            .read(2, .dword),
        ])
        #expect(machine[.rbx] == 0x4433_22A5)
        #expect(machine[.rcx] == 0x4433_A5A5)
        #expect(machine[.rax] == 0xA5A5_A5A5)
    }

    @Test func `string input and output move memory`() throws {
        let (machine, device) = try machine()
        machine.setData(0, 0x4433_2211)
        var code = GuestCode()
        code.load(.rsi, TestMachine.data)
        code.load(.rdi, TestMachine.data + 8)
        code.load(.rdx, 0x60)
        code.load(.rcx, 2)
        code.emit(0xF3, 0x66, 0x6F)  // rep outsw
        code.load(.rcx, 3)
        code.emit(0xF3, 0x6C)  // rep insb
        code.done()
        #expect(try machine.run(code).vector == Outcome.done)
        #expect(device.accesses == [.write(0, .word, 0x2211), .write(0, .word, 0x4433), .read(0, .byte), .read(0, .byte), .read(0, .byte)])
        #expect(machine.data(8) == 0xA5_A5A5)
        #expect(machine[.rsi] == TestMachine.data + 4)
        #expect(machine[.rdi] == TestMachine.data + 11)
        #expect(machine[.rcx] == 0)
    }
}

/// Remembers every access, and reads 0xA5 in every byte.
///
/// `@unchecked Sendable`: a test runs its CPU on its own thread, and so makes every access and looks at them there.
final class RecordingDevice: MMIODevice, PortDevice, @unchecked Sendable {
    enum Access: Hashable, CustomStringConvertible {
        case read(UInt64, AccessWidth)
        case write(UInt64, AccessWidth, UInt64)
        var description: String {
            switch self {
            case .read(let offset, let width): "read(\(offset), \(width))"
            case .write(let offset, let width, let value): "write(\(offset), \(width), \(hex(value)))"
            }
        }
    }
    private(set) var accesses: [Access] = []

    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        accesses.append(.read(offset, width))
        return 0xA5A5_A5A5_A5A5_A5A5
    }
    func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) { accesses.append(.write(offset, width, value)) }
    func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32 { UInt32(truncatingIfNeeded: read(UInt64(offset), width)) }
    func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32) { write(UInt64(offset), width, UInt64(value)) }
}
