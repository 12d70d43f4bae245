import CLinux
import Linux
import VMM

extension KVMVirtualCPU {
    /// Acts on why KVM_RUN returned.
    /// - Returns: what is for the machine to act on, or `nil` to go on.
    func handleExit() throws -> Exit? {
        switch CInt(area.pointee.exit_reason) {
        case KVM_EXIT_IO:
            portAccess()
            return nil
        case KVM_EXIT_MMIO:
            memoryAccess()
            return nil
        case KVM_EXIT_HLT:
            isHalted = true
            // An interrupt may be there already: the loop looks before it tells anybody.
            return nil
        case KVM_EXIT_X86_RDMSR:
            readMSR()
            return nil
        case KVM_EXIT_X86_WRMSR:
            writeMSR()
            return nil
        case KVM_EXIT_IOAPIC_EOI:
            if let apics = engine.localAPIC { try interruptEnded(apics) }
            return nil
        case KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_INTR, KVM_EXIT_NMI, KVM_EXIT_SET_TPR:
            return nil
        case KVM_EXIT_SHUTDOWN:
            let place = try place()
            return .shutdown(ShutdownReason(rip: place.rip, mode: place.mode, reason: "triple fault"))
        case KVM_EXIT_INTERNAL_ERROR:
            return .failure(try internalError())
        case KVM_EXIT_FAIL_ENTRY:
            let reason = hexadecimal(clinux_kvm_entry_failure(area))
            return .failure("kvm: the CPU refused to enter the guest (reason \(reason)) \(try place().text)")
        case let reason:
            return .failure("kvm: unexpected exit \(reason) \(try place().text)")
        }
    }

    /// IN, OUT and their string forms, which come as up to a page of items for one port.
    private func portAccess() {
        let io = clinux_kvm_io(area)
        guard let width = AccessWidth(rawValue: Int(io.size)), width != .qword else { return }
        var data = runMapping.base + Int(truncatingIfNeeded: io.data_offset)
        let isOut = CInt(io.direction) == KVM_EXIT_IO_OUT
        for _ in 0..<io.count {
            if isOut {
                let value: UInt32 =
                    switch width {
                    case .byte: UInt32(data.load(as: UInt8.self))
                    case .word: UInt32(data.loadUnaligned(as: UInt16.self))
                    case .dword, .qword: data.loadUnaligned(as: UInt32.self)
                    }
                wiring.ports.write(io.port, width, value)
            } else {
                let value = wiring.ports.read(io.port, width)
                switch width {
                case .byte: data.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
                case .word: data.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
                case .dword, .qword: data.storeBytes(of: value, as: UInt32.self)
                }
            }
            data += width.rawValue
        }
        isCompleting = true
    }

    private func memoryAccess() {
        let access = clinux_kvm_mmio(area)
        let isWrite = access.is_write != 0
        if let width = AccessWidth(rawValue: Int(access.length)) {
            if isWrite {
                wiring.mmio.write(access.address, width, access.data)
            } else {
                clinux_kvm_mmio_answer(area, wiring.mmio.read(access.address, width))
            }
        } else {
            // What is left of an access that crosses a page: as the bus would, in bytes.
            var answer: UInt64 = 0
            for byte in 0..<UInt64(min(access.length, 8)) {
                if isWrite {
                    wiring.mmio.write(access.address &+ byte, .byte, access.data >> (byte * 8) & 0xFF)
                } else {
                    answer |= wiring.mmio.read(access.address &+ byte, .byte) << (byte * 8)
                }
            }
            if !isWrite { clinux_kvm_mmio_answer(area, answer) }
        }
        isCompleting = true
    }

    private func readMSR() {
        let access = clinux_kvm_msr(area)
        let isKernels = CInt(access.reason) == KVM_MSR_EXIT_REASON_INVAL
        let value = isKernels ? nil : wiring.policy.readMSR(access.index, tableMSRs)
        clinux_kvm_msr_answer(area, value == nil ? 1 : 0, value ?? 0)
        isCompleting = true
    }

    private func writeMSR() {
        let access = clinux_kvm_msr(area)
        var fault = true
        // The kernel refused a value for a register that is its own.
        if CInt(access.reason) != KVM_MSR_EXIT_REASON_INVAL {
            switch wiring.policy.writeMSR(access.index, access.data, &tableMSRs) {
            case .done, .ignored: fault = false
            // The clock is the kernel's: it comes here only if the kernel has none.
            case .generalProtection, .paravirtualClock: fault = true
            }
        }
        clinux_kvm_msr_answer(area, fault ? 1 : 0, access.data)
        isCompleting = true
    }

    private func internalError() throws -> String {
        let error = clinux_kvm_internal(area)
        let place = try place().text
        switch CInt(error.suberror) {
        case KVM_INTERNAL_ERROR_EMULATION:
            // data[0] are flags, bit 0: instruction bytes follow, their number first.
            var bytes = ""
            if error.count >= 3, error.data.0 & 1 != 0 {
                let (low, high) = (error.data.1, error.data.2)
                for index in 1...15 where index <= low & 0xFF {
                    let bits = index < 8 ? low >> UInt64(index * 8) : high >> UInt64(index * 8 - 64)
                    let byte = UInt8(truncatingIfNeeded: bits)
                    bytes += (byte < 16 ? " 0" : " ") + String(byte, radix: 16)
                }
            }
            let advice = KVMEngine.showsVirtualisation ? "" : ": without hardware under it it emulates few: use engine translator"
            return "kvm: the kernel cannot emulate an instruction \(place)\(bytes.isEmpty ? "" : " (bytes\(bytes))")\(advice)"
        case let number:
            return "kvm: internal error \(number) \(place)"
        }
    }

    /// Where the guest is, for messages.
    private func place() throws(KVMError) -> (rip: UInt64, mode: String, text: String) {
        var registers = kvm_regs()
        try kvm("KVM_GET_REGS", descriptor.raw, clinux_kvm_get_regs, &registers)
        var system = kvm_sregs()
        try kvm("KVM_GET_SREGS", descriptor.raw, clinux_kvm_get_sregs, &system)
        let mode = ShutdownReason.modeName(
            cr0: system.cr0, rflags: registers.rflags, efer: system.efer, is64Bit: system.cs.l != 0)
        return (registers.rip, mode, "at rip \(hexadecimal(registers.rip)) in \(mode)")
    }
}

private func hexadecimal(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
