import Linux
import VMM

/// A file that boots a machine, held open so that a reboot reads what the start read.
final class BootFile: Sendable {
    private enum Content: Sendable {
        case file(OpenedFile)
        /// What was packed into one.
        case unpacked([UInt8])
    }

    private let content: Content
    let path: String
    /// At the time of opening.
    let byteCount: UInt64
    /// "kernel", "initrd" or "module", for messages.
    let role: String

    init(_ role: String, _ source: BootSource) throws(MachineError) {
        let opened: OpenedFile
        do {
            opened =
                switch source {
                case .path(let path): OpenedFile(try RegularFile(path))
                case .opened(let file): file
                }
        } catch {
            throw MachineError("\(role) \(source.name): \(error): \(Self.advice(error, role))")
        }
        content = .file(opened)
        path = opened.name
        byteCount = opened.file.byteCount
        self.role = role
        guard byteCount > 0 else { throw error("is empty", "copy it again") }
    }

    private init(unpacked bytes: [UInt8], of packed: BootFile) {
        content = .unpacked(bytes)
        path = packed.path
        byteCount = UInt64(bytes.count)
        role = packed.role
    }

    /// The most that `unpacked` unpacks. A guest's memory that is smaller counts instead.
    private static let unpackedByteCountMax: UInt64 = 256 << 20

    /// What gzip has packed into the file, or the file itself if it is not packed. It is held in memory: whoever
    /// asks drops it when the guest has its copy.
    /// - Parameter room: the guest's memory.
    func unpacked(room: UInt64) throws(MachineError) -> BootFile {
        guard try read(at: 0, count: Gunzip.magic.count).has(Gunzip.magic, at: 0) else { return self }
        let limit = min(room, Self.unpackedByteCountMax)
        do {
            let bytes = try Gunzip.unpack(limit: Int(limit)) { offset, count throws(MachineError) in
                try read(at: offset, count: count).bytes
            }
            guard !bytes.isEmpty else { throw error("is compressed with gzip, and empty", "copy it again") }
            return BootFile(unpacked: bytes, of: self)
        } catch let error as MachineError {
            throw error
        } catch Gunzip.Failure.tooLong {
            throw error(
                "unpacks to more than \(sizeText(limit))",
                limit < room ? "unpack it with gunzip" : "give more memory with -m")
        } catch Gunzip.Failure.noMemory {
            throw error("cannot be unpacked for want of memory", "unpack it with gunzip")
        } catch Gunzip.Failure.truncated {
            throw truncated()
        } catch {
            throw self.error("is compressed with gzip, and damaged", "copy it again")
        }
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
        switch content {
        case .unpacked(let bytes):
            return ByteReader(bytes: Array(bytes.dropFirst(Int(clamping: offset)).prefix(count)))
        case .file(let opened):
            do {
                return ByteReader(bytes: try opened.file.read(at: offset, count: count))
            } catch {
                throw self.error("cannot be read: \(error.reason)", "check the file")
            }
        }
    }

    /// Copies exactly `count` bytes to `gpa`.
    func load(
        at offset: UInt64, count: UInt64, into memory: GuestMemory, _ gpa: UInt64
    ) throws(MachineError) {
        let got: UInt64?
        switch content {
        case .unpacked(let bytes):
            let part = bytes.dropFirst(Int(clamping: offset)).prefix(Int(clamping: count))
            got = memory.write(Array(part), at: gpa) ? UInt64(part.count) : nil
        case .file(let opened):
            do {
                got = try memory.fill(gpa, count: count, from: opened.file, at: offset)
            } catch {
                throw self.error("cannot be read: \(error.reason)", "check the file")
            }
        }
        guard let got else { throw error("does not fit in memory at \(hexText(gpa))", "give more memory with -m") }
        guard got == count else { throw truncated() }
    }
}

/// An address the way kernels print it.
func hexText(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
