import CLinux
import ControlProtocol
import Glibc
import Linux
import Testing

/// Who connects.
struct TestUser: Sendable {
    var uid: UInt32
    var gid: UInt32
    var groups: [UInt32] = []

    /// Runs something as that user, on a thread of its own, whose credentials are changed and go with it: the kernel
    /// keeps them by thread, and only the C library makes all threads alike.
    func run<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
        let user = self
        nonisolated(unsafe) var outcome: Swift.Result<Result, any Error> = .failure(GuestFailure(description: "no thread"))
        let thread = try PosixThread("user") {
            var groups = user.groups
            let results = [
                clinux_syscall(Int(SYS_setgroups), UInt(groups.count), groups.withUnsafeMutableBytes { UInt(bitPattern: $0.baseAddress) }, 0, 0, 0, 0),
                clinux_syscall(Int(SYS_setresgid), UInt(user.gid), UInt(user.gid), UInt(user.gid), 0, 0, 0),
                clinux_syscall(Int(SYS_setresuid), UInt(user.uid), UInt(user.uid), UInt(user.uid), 0, 0, 0),
            ]
            outcome = results.allSatisfy { $0 == 0 } ? .init(catching: body) : .failure(GuestFailure(description: "cannot become \(user)"))
        }
        thread.join()
        return try outcome.get()
    }
}

/// A connection to the control socket, without any of the manners of vmctl's.
final class TestClient: Sendable {
    private let socket: UnixSocket
    var raw: CInt { socket.raw }

    init(_ path: String) throws { socket = try UnixSocket(connectingTo: path) }

    static func connect(_ path: String, as user: TestUser) throws -> TestClient { try user.run { try TestClient(path) } }

    /// - Parameter descriptors: borrowed.
    func send(_ request: Request, _ descriptors: [CInt] = []) throws { try send(packet: try request.encoded(), descriptors) }

    func send(packet: [UInt8], _ descriptors: [CInt] = []) throws {
        while try !socket.send(packet, descriptors: descriptors) { try wait(POLLOUT, Paths.patience) }
    }

    /// What came, or `nil` when the daemon has hung up.
    func receive(within seconds: Double = Paths.patience) throws -> Response? { try receiveWithStream(within: seconds)?.response }

    func receiveWithStream(within seconds: Double = Paths.patience) throws -> (response: Response, stream: CInt?)? {
        while true {
            switch try socket.receive(limit: Packet.longest) {
            case .packet(var packet):
                let response = try Response(packet: packet.bytes, descriptorCount: packet.descriptors.count)
                return (response, packet.descriptors.takeFirst()?.release())
            case .closed: return nil
            case .nothing: try wait(POLLIN, seconds)
            }
        }
    }

    private func wait(_ event: Int32, _ seconds: Double) throws {
        var entry = pollfd(fd: raw, events: Int16(event), revents: 0)
        guard poll(&entry, 1, Int32(seconds * 1000)) > 0 else { throw GuestFailure(description: "vmd does not answer within \(seconds) s") }
    }

    /// A request with one answer.
    func ask(_ request: Request, _ descriptors: [CInt] = [], within seconds: Double = Paths.patience) throws -> Response {
        try send(request, descriptors)
        guard let answer = try receive(within: seconds) else { throw GuestFailure(description: "vmd hung up on \(request)") }
        return answer
    }

    /// A request with a list of answers; a refusal is a list of one.
    func list(_ request: Request, within seconds: Double = Paths.patience) throws -> [Response] {
        try send(request)
        var answers: [Response] = []
        while let answer = try receive(within: seconds) {
            if answer == .end { return answers }
            answers.append(answer)
            if answers.count == 1, case .failed = answer { return answers }
        }
        throw GuestFailure(description: "vmd hung up behind \(answers)")
    }
}

extension Response {
    /// Why, when it is a refusal.
    var refusal: Failure? { if case .failed(let failure, _) = self { failure } else { nil } }
    var text: String { if case .failed(_, let text) = self { text } else { "" } }
    var machineState: MachineStatus.State? { if case .machine(let status) = self { status.state } else { nil } }
    var isStarted: Bool { if case .started = self { true } else { false } }
}
