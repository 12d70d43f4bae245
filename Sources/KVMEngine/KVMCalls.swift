import CLinux
import Glibc
public import Linux

/// Why this host's KVM cannot be used. The text is a sentence for the user.
public enum KVMError: Error, Hashable, Sendable, CustomStringConvertible {
    case cannotOpen(SystemError)
    case wrongVersion(CInt)
    case missingCapability(String)
    case call(SystemError)

    public var description: String {
        switch self {
        case .cannotOpen(let error) where error.errno == EACCES || error.errno == EPERM:
            "/dev/kvm: \(error.reason): join the group that owns it, or use the translator engine"
        case .cannotOpen(let error):
            "/dev/kvm: \(error.reason): use the translator engine"
        case .wrongVersion(let version):
            "/dev/kvm: its interface has version \(version) instead of 12: use the translator engine"
        case .missingCapability(let name):
            "/dev/kvm: the kernel lacks \(name): use the translator engine"
        case .call(let error):
            "kvm: \(error.description)"
        }
    }
}

/// An ioctl that returns a number and takes one.
@discardableResult
func kvm(
    _ name: StaticString, _ descriptor: CInt, _ request: UInt, _ argument: UInt = 0
) throws(KVMError) -> CInt {
    do throws(SystemError) {
        return try retrying(name) { clinux_ioctl(descriptor, request, argument) }
    } catch {
        throw .call(error)
    }
}

/// An ioctl on a structure, which the kernel reads, writes or both.
@discardableResult
func kvm<T>(_ name: StaticString, _ descriptor: CInt, _ request: UInt, _ value: inout T) throws(KVMError) -> CInt {
    try withUnsafeMutablePointer(to: &value) { pointer throws(KVMError) in
        try kvm(name, descriptor, request, UInt(bitPattern: pointer))
    }
}

/// A count and an array behind it, as kvm_cpuid2 and kvm_msrs are laid out, in memory of its own.
struct Counted<Element: BitwiseCopyable>: ~Copyable {
    /// The count and its padding.
    private static var headerSize: Int { 8 }
    private let memory: UnsafeMutableRawPointer
    private let capacity: Int

    /// Zeros, with the count set to `capacity`.
    init(capacity: Int) {
        let byteCount = Self.headerSize + capacity * MemoryLayout<Element>.stride
        memory = .allocate(byteCount: byteCount, alignment: 16)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
        memory.storeBytes(of: UInt32(capacity), as: UInt32.self)
        self.capacity = capacity
    }

    init(_ elements: [Element]) {
        self.init(capacity: elements.count)
        for (index, element) in elements.enumerated() { self[index] = element }
    }

    deinit { memory.deallocate() }

    /// For the ioctl.
    var address: UInt { UInt(bitPattern: memory) }
    /// How many elements the kernel left.
    var count: Int { min(Int(memory.load(as: UInt32.self)), capacity) }

    subscript(index: Int) -> Element {
        get {
            precondition(index >= 0 && index < capacity)
            return memory.load(
                fromByteOffset: Self.headerSize + index * MemoryLayout<Element>.stride, as: Element.self)
        }
        nonmutating set {
            precondition(index >= 0 && index < capacity)
            memory.storeBytes(
                of: newValue, toByteOffset: Self.headerSize + index * MemoryLayout<Element>.stride, as: Element.self)
        }
    }
}
