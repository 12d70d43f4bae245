import CLinux
import Glibc
package import Linux

/// Host memory for generated code: one memfd mapped twice, writable and executable, so that no mapping is both
/// and translated code, which knows only the executable addresses, cannot write itself.
package final class CodeMemory {
    package let byteCount: Int
    private let writable: MemoryMapping
    private let executable: MemoryMapping

    package init(byteCount: Int) throws(SystemError) {
        let descriptor = try FileDescriptor.memory("translated", byteCount: byteCount)
        writable = try MemoryMapping(
            byteCount: byteCount, protection: PROT_READ | PROT_WRITE, flags: MAP_SHARED, descriptor: descriptor.raw,
            guardByteCount: MemoryMapping.standardGuard)
        executable = try MemoryMapping(
            byteCount: byteCount, protection: PROT_READ | PROT_EXEC, flags: MAP_SHARED, descriptor: descriptor.raw,
            guardByteCount: MemoryMapping.standardGuard)
        self.byteCount = byteCount
    }

    /// The writable view.
    package var writableBase: UnsafeMutablePointer<UInt8> { writable.base.assumingMemoryBound(to: UInt8.self) }
    /// The address at which the CPU runs the byte at offset 0.
    package var executableBase: UInt64 { UInt64(UInt(bitPattern: executable.base)) }
}
