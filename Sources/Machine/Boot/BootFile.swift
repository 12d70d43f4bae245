import Linux
import VMM

/// A file that boots a machine, held open so that a reboot reads what the start read.
final class BootFile: Sendable {
    private let opened: OpenedFile
    var path: String { opened.name }
    /// At the time of opening.
    var byteCount: UInt64 { opened.file.byteCount }
    /// "kernel", "initrd" or "module", for messages.
    let role: String

    init(_ role: String, _ source: BootSource) throws(MachineError) {
        self.role = role
        do {
            opened =
                switch source {
                case .path(let path): OpenedFile(try RegularFile(path))
                case .opened(let file): file
                }
        } catch {
            throw MachineError("\(role) \(source.name): \(error): \(Self.advice(error, role))")
        }
        guard byteCount > 0 else { throw MachineError("\(role) \(path): is empty: copy it again") }
    }

    private static func advice(_ failure: RegularFile.Failure, _ role: String) -> String {
        switch failure {
        case .system(let error) where error.isPermission: "make it readable for this user"
        case .system(let error) where error.isMissing: "check the path"
        case .system: "check the file"
        case .notRegular: "give the path of the \(role) itself"
        }
    }

    /// An error about this file: what is wrong, and what to do.
    func error(_ reason: String, _ advice: String) -> MachineError {
        MachineError("\(role) \(path): \(reason): \(advice)")
    }

    func truncated() -> MachineError { error("is truncated", "copy it again") }

    func contains(_ offset: UInt64, count: UInt64) -> Bool { offset <= byteCount && byteCount - offset >= count }

    /// Up to `count` bytes from `offset`, fewer at the end of the file.
    func read(at offset: UInt64, count: Int) throws(MachineError) -> ByteReader {
        do {
            return ByteReader(bytes: try opened.file.read(at: offset, count: count))
        } catch {
            throw self.error("cannot be read: \(error.reason)", "check the file")
        }
    }

    /// Copies exactly `count` bytes to `gpa`.
    func load(
        at offset: UInt64, count: UInt64, into memory: GuestMemory, _ gpa: UInt64
    ) throws(MachineError) {
        let got: UInt64?
        do {
            got = try memory.fill(gpa, count: count, from: opened.file, at: offset)
        } catch {
            throw self.error("cannot be read: \(error.reason)", "check the file")
        }
        guard let got else { throw error("does not fit in memory at \(hexText(gpa))", "give more memory with -m") }
        guard got == count else { throw truncated() }
    }
}

/// An address the way kernels print it.
func hexText(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
