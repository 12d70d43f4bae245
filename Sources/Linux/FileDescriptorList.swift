import CLinux
import Glibc

/// Owned descriptors that arrived together: taken out in order; what is left is closed when it goes out of scope.
public struct FileDescriptorList: ~Copyable, Sendable {
    /// Those that are left, borrowed: to hand them on.
    public private(set) var numbers: [CInt]

    /// Takes over the numbers: nobody else may close them.
    init(owning numbers: [CInt]) { self.numbers = numbers }

    public init() { numbers = [] }

    deinit { for number in numbers { close(number) } }

    public var count: Int { numbers.count }
    public var isEmpty: Bool { numbers.isEmpty }

    /// The first of those that are left, or `nil`.
    public mutating func takeFirst() -> FileDescriptor? {
        numbers.isEmpty ? nil : FileDescriptor(owning: numbers.removeFirst())
    }

    /// Adds one behind the others.
    public mutating func append(_ descriptor: consuming FileDescriptor) { numbers.append(descriptor.release()) }
}
