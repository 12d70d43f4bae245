import Glibc

/// The system calls that a process may make: an allow-list, as data. Everything else fails with EPERM, and calls by the
/// 32-bit or x32 entries kill the process.
///
/// Roles add up groups: `.memory + .threads + .descriptors`. A call that two groups allow under different conditions is
/// allowed under either.
public struct SystemCallPolicy: Hashable, Sendable {
    public struct Rule: Hashable, Sendable {
        /// The kernel's name of the call.
        public var name: String
        /// All must hold. A filter sees numbers, not what pointers point at.
        public var conditions: [Condition]
        /// Fails with this errno instead of being allowed.
        public var failure: CInt?

        public init(_ name: String, _ conditions: [Condition] = [], failure: CInt? = nil) {
            self.name = name
            self.conditions = conditions
            self.failure = failure
        }
    }

    /// What an argument (0 to 5) must be, in the bits of `mask`.
    public struct Condition: Hashable, Sendable {
        public enum Value: Hashable, Sendable {
            case number(UInt64)
            /// The process that enters the sandbox.
            case ownProcessID
        }
        public let argument: UInt32
        public let mask: UInt64
        public let value: Value

        /// An argument that the kernel takes as int: the upper half of the register does not count.
        public static func argument(_ index: UInt32, is value: UInt32) -> Condition {
            .init(argument: index, mask: 0xFFFF_FFFF, value: .number(UInt64(value)))
        }
        public static func argument(_ index: UInt32, lacks bits: UInt64) -> Condition {
            .init(argument: index, mask: bits, value: .number(0))
        }
        public static func argument(_ index: UInt32, masked mask: UInt64, is value: UInt64) -> Condition {
            .init(argument: index, mask: mask, value: .number(value & mask))
        }
        public static func isOwnProcess(_ index: UInt32) -> Condition {
            .init(argument: index, mask: 0xFFFF_FFFF, value: .ownProcessID)
        }
    }

    public private(set) var rules: [Rule]

    public init(_ rules: [Rule]) { self.rules = rules }
    /// Calls without conditions.
    public init(_ names: String...) { rules = names.map { Rule($0) } }

    public static func + (left: Self, right: Self) -> Self {
        .init(left.rules + right.rules.filter { !left.rules.contains($0) })
    }
    public static func += (left: inout Self, right: Self) { left = left + right }

    /// One call for each of the values that an int argument may have.
    public static func call(_ name: String, argument: UInt32, isOneOf values: [UInt32]) -> Self {
        .init(values.map { Rule(name, [.argument(argument, is: $0)]) })
    }

    /// These requests and no others.
    public static func ioctl(_ requests: [UInt32]) -> Self { call("ioctl", argument: 1, isOneOf: requests) }
}
