import CLinux
import Glibc

/// A regular file opened for reading, whose parts can be read in any order and again later.
public struct RegularFile: ~Copyable, Sendable {
    private let descriptor: FileDescriptor
    public let path: String
    /// At the time of opening; the file may change later, so every read says how much it got.
    public let byteCount: UInt64

    /// Why a path could not be opened.
    public enum Failure: Error, Equatable, CustomStringConvertible {
        case system(SystemError)
        case notRegular(String)

        public var description: String {
            switch self {
            case .system(let error): error.reason
            case .notRegular(let kind): "is \(kind), not a regular file"
            }
        }
    }

    /// Opens without waiting for anything: a FIFO given by mistake would block until somebody writes.
    public init(_ path: String) throws(Failure) { try self.init(owning: try Self.open(path), path) }

    /// Takes over a descriptor that somebody else has opened for reading, as in a process that may open nothing.
    /// - Parameter name: what to call it in messages: its path, where it was opened.
    public init(owning opened: consuming FileDescriptor, _ name: String) throws(Failure) {
        var status = stat()
        let result = fstat(opened.raw, &status)
        let code = errno
        guard result == 0 else { throw .system(SystemError("fstat", errno: code)) }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG else {
            throw .notRegular(kind == S_IFDIR ? "a directory" : kind == S_IFBLK ? "a block device" : "special")
        }
        descriptor = opened
        path = name
        byteCount = UInt64(max(0, status.st_size))
    }

    /// Gives the descriptor away.
    public consuming func release() -> FileDescriptor { descriptor }

    private static func open(_ path: String) throws(Failure) -> FileDescriptor {
        do {
            return try FileDescriptor(open: path, flags: O_RDONLY | O_NONBLOCK | O_NOCTTY)
        } catch {
            throw .system(error)
        }
    }

    /// Reads up to `buffer.count` bytes from `offset` on; fewer only at the end of the file.
    public borrowing func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(SystemError) -> Int {
        var done = 0
        while done < buffer.count {
            guard let base = buffer.baseAddress, let position = Int(exactly: offset + UInt64(done)) else { break }
            let number = descriptor.raw
            let count = try retrying("read") { pread(number, base + done, buffer.count - done, position) }
            if count == 0 { break }
            done += count
        }
        return done
    }

    /// Reads up to `count` bytes from `offset` on; fewer only at the end of the file.
    public borrowing func read(at offset: UInt64, count: Int) throws(SystemError) -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: max(0, count), alignment: 16)
        defer { buffer.deallocate() }
        return [UInt8](buffer.prefix(try read(into: buffer, at: offset)))
    }
}
