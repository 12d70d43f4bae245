import CLinux
import Glibc
public import Linux

/// A file that an image lies in: reads and writes at offsets, each in full or an error.
///
/// The only place of this target that calls the host. A test's `FileObserver` sees every call that changes the file, in order,
/// and can make it fail, so crashes at any point can be replayed.
public final class ImageFile: Sendable {
    /// Its path, or how it was named to us.
    public let name: String
    public let isReadOnly: Bool
    private let file: FileDescriptor
    let observer: (any FileObserver)?
    private let synchronizes: Bool

    /// Takes over a descriptor that was opened for reading, and for writing unless `isReadOnly`.
    /// - Parameter synchronizes: `false` for a new file that counts only once it is whole: nothing waits for the medium.
    public init(
        owning descriptor: consuming FileDescriptor, name: String, isReadOnly: Bool, synchronizes: Bool = true,
        observer: (any FileObserver)? = nil
    ) {
        self.synchronizes = synchronizes
        file = descriptor
        self.name = name
        self.isReadOnly = isReadOnly
        self.observer = observer
    }

    /// Borrowed; open as long as the object lives.
    public var descriptor: CInt { file.raw }

    /// Now: a file can grow under us.
    public func byteCount() throws(ImageError) -> UInt64 {
        let status = try status()
        guard status.st_mode & S_IFMT == S_IFBLK else { return UInt64(max(0, status.st_size)) }
        let number = file.raw
        let end = try attempt("find the size") { () throws(SystemError) in try retrying("lseek") { lseek(number, 0, SEEK_END) } }
        return UInt64(max(0, end))
    }

    /// What it takes of the host's disk: holes take nothing.
    func hostByteCount() throws(ImageError) -> UInt64 { UInt64(max(0, try status().st_blocks)) * 512 }

    func status() throws(ImageError) -> stat {
        var status = stat()
        let number = file.raw
        try attempt("look at the file") { () throws(SystemError) in _ = try retrying("fstat") { fstat(number, &status) } }
        return status
    }

    /// Fills the buffer.
    /// - Returns: how many bytes there were; fewer than asked for only at the end of the file.
    public func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(ImageError) -> Int {
        var done = 0
        while done < buffer.count, let base = buffer.baseAddress {
            guard let position = off_t(exactly: offset &+ UInt64(done)) else { break }
            let number = file.raw
            let count = try attempt("read") { () throws(SystemError) in
                try retrying("pread") { pread(number, base + done, buffer.count - done, position) }
            }
            if count == 0 { break }
            done += count
        }
        return done
    }

    /// Writes all of the buffer, or fails: then any part of it may have been written.
    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(ImageError) {
        try observe(.write(buffer, offset: offset))
        var done = 0
        while done < buffer.count, let base = buffer.baseAddress {
            guard let position = off_t(exactly: offset &+ UInt64(done)) else {
                throw ImageError(.system(SystemError("pwrite", errno: EFBIG)), name, "the file would become too large")
            }
            let number = file.raw
            done += try attempt("write") { () throws(SystemError) in
                try retrying("pwrite") { pwrite(number, base + done, buffer.count - done, position) }
            }
        }
    }

    /// Everything written is on the medium (fdatasync(2)).
    public func synchronize() throws(ImageError) {
        try observe(.synchronize)
        guard synchronizes else { return }
        let number = file.raw
        try attempt("flush") { () throws(SystemError) in _ = try retrying("fdatasync") { fdatasync(number) } }
    }

    /// Cuts or extends the file; what is new reads as zeros and takes no room.
    public func setByteCount(_ count: UInt64) throws(ImageError) {
        try observe(.resize(count))
        let number = file.raw
        let size = off_t(clamping: count)
        try attempt("resize") { () throws(SystemError) in _ = try retrying("ftruncate") { ftruncate(number, size) } }
    }

    func observe(_ change: FileChange) throws(ImageError) {
        guard let observer else { return }
        do {
            try observer.willChange(change)
        } catch {
            throw ImageError(.system(error), name, "\(error.reason)")
        }
    }

    /// - Parameter action: what was tried, for the message.
    func attempt<T>(_ action: String, _ body: () throws(SystemError) -> T) throws(ImageError) -> T {
        do {
            return try body()
        } catch {
            throw ImageError(.system(error), name, "cannot \(action): \(error.reason)")
        }
    }
}

/// What is about to happen to a file.
public enum FileChange {
    case write(UnsafeRawBufferPointer, offset: UInt64)
    case synchronize
    case resize(UInt64)
    /// The range reads as zeros afterwards; with `keepsRoom` its place in the file stays reserved.
    case zero(offset: UInt64, count: UInt64, keepsRoom: Bool)
}

/// Sees, and can stop, what happens to a file: for tests of crashes and failing hosts.
public protocol FileObserver: AnyObject, Sendable {
    /// - Throws: to make the call fail with that error; nothing is written then.
    func willChange(_ change: FileChange) throws(SystemError)
}
