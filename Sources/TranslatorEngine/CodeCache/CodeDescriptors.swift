/// What translated code tells the run loop when it leaves: stored in the code behind the call to an exit thunk.
package struct ExitDescriptor {
    package enum Kind: UInt8 {
        /// A direct jump that is not linked yet: `value` is the target's offset from the code page; the number of its
        /// `Site` follows the descriptor.
        case chain
        /// As `chain`, never linked: an interrupt is to be looked at first.
        case goto
        /// An instruction for the system half: `value` is its index in the system instruction pool.
        case system
        /// An indirect jump that missed the jump cache: the target is in `Context.rip`.
        case indirect
        /// An exception: `vector` at offset `value` from the code page.
        case exception
        /// A near call to an address that is not canonical, at offset `value` from the code page.
        case refusedCall
        /// A memory helper found a fault; the exception is with the CPU, `Context.rip` is exact.
        case fault
        /// `Context.rip` says where to go on.
        case resume
        /// A host signal arrived in translated code.
        case signal
    }
    package var kind: UInt8
    /// Whether the flags were in the host's flags (of `chain`: which of the target's entries to link to).
    package var flagsInHost: UInt8
    package var vector: UInt8
    package var padding: UInt8
    package var value: Int32
    package static let size = 8
}

/// What a memory access is, in a byte.
package enum Access {
    package static let read: UInt8 = 1
    package static let write: UInt8 = 2
    /// Through SS: a non-canonical address is #SS, not #GP.
    package static let stack: UInt8 = 4
    /// A vector access that must be aligned to its size: #GP otherwise, which comes before a page fault. Where
    /// there is no page fault the host's CPU finds that by itself.
    package static let aligned: UInt8 = 8
    /// Of an x87 instruction: an exception that is pending there comes before a page fault.
    package static let x87: UInt8 = 16
    /// Outside of 64-bit code: not through a segment that was checked, so an access that passes 4 GB passes the limit.
    package static let flat: UInt8 = 32
    /// Under a mask that keeps what it leaves out from faulting: `MemoryDescriptor.slot` is an `AccessMask`.
    package static let masked: UInt8 = 64

    /// What #AC wants an access's address to be a multiple of (SDM Vol. 3, table 6-7): its size up to 16, 8 for
    /// ten bytes, 4 or 2 for the x87 environment and state. Accesses that raise #GP when misaligned want nothing here.
    static func alignment(size: Int, _ access: UInt8) -> Int {
        if access & aligned != 0 { return 1 }
        switch size {
        case 1, 2, 4, 8, 16: return size
        case 10: return 8
        case 14, 94: return 2
        case 6, 28, 108: return 4
        default: return size > 16 ? 16 : 1
        }
    }
}

/// What a memory access tells its slow path: stored in the code behind the call.
package struct MemoryDescriptor {
    /// From this descriptor to the instruction that makes the access.
    package var operation: Int32
    /// Length of that instruction's host code, to copy when it has to run on the bounce buffer.
    package var operationLength: UInt8
    /// An `Access`.
    package var access: UInt8
    /// Bytes.
    package var size: UInt16
    /// Offset of the guest instruction from the code page.
    package var guest: UInt16
    /// One more than the number of the slot that the site may give up, 0 for none. Under `Access.masked` an `AccessMask`.
    package var slot: UInt16
    package static let size = 12
}
