import Linux
import VMConfig

/// Who asks, as the kernel says.
struct Peer: Hashable, Sendable {
    var uid: UInt32
    var groups: Set<UInt32>
    var pid: UInt32

    init(uid: UInt32, groups: Set<UInt32>, pid: UInt32) {
        self.uid = uid
        self.groups = groups
        self.pid = pid
    }

    /// Who is at the other end of a socket that control says it has accepted.
    /// - Parameter name: the listener's. Other sockets of control's have none: the one to us, for one, at whose other
    ///   end is root.
    init(of socket: consuming FileDescriptor, acceptedBy name: [UInt8]) throws {
        let socket = try UnixSocket(adopting: socket)
        let local = try socket.localName()
        guard !name.isEmpty, local == name else { throw UnixSocket.Failure.wrongKind }
        let credentials = try socket.peerCredentials()
        uid = credentials.userID
        groups = Set(credentials.groups + [credentials.groupID])
        pid = UInt32(credentials.processID)
    }
}

/// Who owns a machine, as ids and as the configuration names them.
struct ResolvedOwner: Hashable, Sendable {
    var uid: UInt32
    /// Its members may do what the owner may.
    var gid: UInt32?
    /// `user`, `user:group` or `:group`.
    var text: String
}

/// Who may do what (OpenBSD's rules; for a daemon that is not root's, its user is what root is there).
struct Permissions: Sendable {
    /// The user that the daemon runs as.
    let daemonUID: UInt32

    func isAdministrator(_ peer: Peer) -> Bool { peer.uid == 0 || peer.uid == daemonUID }

    /// - Parameter starter: who started the machine, when it runs.
    func mayControl(_ peer: Peer, _ owner: ResolvedOwner, startedBy starter: UInt32?) -> Bool {
        if isAdministrator(peer) { return true }
        if let gid = owner.gid, peer.groups.contains(gid) { return true }
        return peer.uid == starter ?? owner.uid
    }
}

extension ResolvedOwner {
    /// - Parameter defaultUID: the user's, where only a group is given.
    /// - Throws: when there is no such user or group.
    init(_ owner: Owner, defaultUID: UInt32) throws(UnknownOwner) {
        var uid = defaultUID
        if let user = owner.user {
            guard let known = try? UserDatabase.userID(user) else { throw UnknownOwner("no user \(user) on this host") }
            uid = known
        }
        var gid: UInt32?
        if let group = owner.group {
            guard let known = try? UserDatabase.groupID(group) else { throw UnknownOwner("no group \(group) on this host") }
            gid = known
        }
        self.init(uid: uid, gid: gid, text: owner.description)
    }

    init(uid: UInt32) {
        self.init(uid: uid, gid: nil, text: UserDatabase.name(ofUser: uid))
    }
}

/// The configuration names somebody whom the host does not know.
struct UnknownOwner: Error, Hashable {
    let text: String
    init(_ text: String) { self.text = text }
}
