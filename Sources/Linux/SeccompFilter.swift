internal import CSeccomp
import Glibc

/// A policy as a filter in the kernel (seccomp(2)), made by libseccomp.
enum SeccompFilter {
    /// Puts the policy in force for this thread and those it starts, for good. no_new_privs must be set.
    /// - Returns: names that this host's libseccomp does not know; they stay forbidden.
    /// - Throws: ENOMEM, or what seccomp(2) says: EINVAL where the kernel has none.
    static func load(_ policy: SystemCallPolicy, allThreads: Bool = false) throws(SystemError) -> [String] {
        // SCMP_ACT_ERRNO(EPERM)
        guard let context = seccomp_init(failing(EPERM)) else { throw SystemError("seccomp_init", errno: ENOMEM) }
        defer { seccomp_release(context) }
        try check("seccomp_attr_set", seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, UInt32(SCMP_ACT_KILL_PROCESS)))
        // There should be no other threads; they would be inside too.
        try check("seccomp_attr_set", seccomp_attr_set(context, SCMP_FLTATR_CTL_TSYNC, 1))
        // A tree instead of a list: each call is compared some ten times. Only since libseccomp 2.5.
        _ = seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2)
        if allThreads { try check("seccomp_attr_set", seccomp_attr_set(context, SCMP_FLTATR_CTL_TSYNC, 1)) }
        var unknown: [String] = []
        for rule in policy.rules {
            guard let number = number(of: rule.name) else {
                unknown.append(rule.name)
                continue
            }
            let comparisons = rule.conditions.map { condition in
                scmp_arg_cmp(
                    arg: condition.argument, op: SCMP_CMP_MASKED_EQ, datum_a: condition.mask,
                    datum_b: condition.number & condition.mask)
            }
            let action = rule.failure.map { failing($0) } ?? UInt32(SCMP_ACT_ALLOW)
            try check(
                "seccomp_rule_add",
                seccomp_rule_add_array(context, action, number, CUnsignedInt(comparisons.count), comparisons))
        }
        try check("seccomp_load", seccomp_load(context))
        return unknown
    }

    /// Forbids one call and allows all others, as a container's runtime does: to test what is left without it.
    static func forbid(_ name: String) throws(SystemError) {
        guard let context = seccomp_init(UInt32(SCMP_ACT_ALLOW)) else { throw SystemError("seccomp_init", errno: ENOMEM) }
        defer { seccomp_release(context) }
        guard let number = number(of: name) else { throw SystemError(name, errno: ENOSYS) }
        try check("seccomp_rule_add", seccomp_rule_add_array(context, failing(EPERM), number, 0, nil))
        try check("seccomp_load", seccomp_load(context))
    }

    /// The call's number on this host, or `nil` when libseccomp is older than the call or this CPU has none.
    static func number(of name: String) -> CInt? {
        let number = seccomp_syscall_resolve_name(name)
        return number >= 0 ? number : nil
    }

    private static func failing(_ code: CInt) -> UInt32 { 0x0005_0000 | UInt32(code) & 0xFFFF }

    /// libseccomp returns the negative errno.
    private static func check(_ call: String, _ result: CInt) throws(SystemError) {
        if result < 0 { throw SystemError(call, errno: -result) }
    }
}

extension SystemCallPolicy {
    /// Narrows what all threads of a process may do that is in its sandbox already: what this policy lacks is gone too.
    /// - Returns: names that this host's libseccomp does not know; they stay forbidden.
    public func narrow() throws(SystemError) -> [String] { try SeccompFilter.load(self, allThreads: true) }

    /// The rules' names that this host's libseccomp does not know.
    public var unknownNames: [String] { rules.map(\.name).filter { SeccompFilter.number(of: $0) == nil } }
}

extension SystemCallPolicy.Condition {
    fileprivate var number: UInt64 {
        switch value {
        case .number(let number): number
        case .ownProcessID: UInt64(getpid())
        }
    }
}
