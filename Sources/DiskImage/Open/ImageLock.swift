import CLinux
import Glibc
import Linux

/// Who may have an image open beside us.
///
/// Locks of open file descriptions: they go with a descriptor to another process, and end with the last copy of it. QEMU's
/// tools are kept out, and keep us out, by the bytes that they lock for it (100 and on for what somebody does, 200 and on for
/// what nobody else may do).
public enum ImageLock: Hashable, Sendable {
    /// For reading what nobody writes: a base. Any number at a time.
    case shared
    /// For writing.
    case exclusive

    private enum QEMU {
        static let reading: Int64 = 100
        static let writing: Int64 = 101
        static let nobodyWrites: Int64 = 201
        static let nobodyResizes: Int64 = 203
    }

    /// Takes it, or fails within a quarter of a second. It is tried more than once: a program that is being started holds all
    /// that its parent has open, until it is another program (O_CLOEXEC), and one that was killed needs its time to go.
    /// - Throws: `inUse`, with who has it.
    public func take(_ descriptor: CInt, _ name: String) throws(ImageError) {
        var tries = 0
        while true {
            do {
                return try acquire(descriptor)
            } catch where error.errno == EAGAIN || error.errno == EACCES {
                Self.release(descriptor)
                tries += 1
                // Looking who it is costs more than trying, and the daemon's parent has others to serve.
                if tries == Self.shortTries || tries == Self.longTries {
                    let holder = FileHolders.describe(descriptor)
                    if holder != nil || tries == Self.longTries {
                        throw ImageError(.inUse, name, "is in use by \(holder ?? "another process"): end that first")
                    }
                }
                usleep(10_000)
            } catch {
                throw ImageError(.system(error), name, "cannot lock: \(error.reason)")
            }
        }
    }

    private func acquire(_ descriptor: CInt) throws(SystemError) {
        guard self == .shared else {
            _ = try retrying("fcntl") { clinux_ofd_lock(descriptor, F_WRLCK, 0, 0) }
            return
        }
        for byte in [QEMU.reading, QEMU.nobodyWrites, QEMU.nobodyResizes] {
            _ = try retrying("fcntl") { clinux_ofd_lock(descriptor, F_RDLCK, byte, 1) }
        }
        // Somebody who writes holds this one as a reader.
        let isWritten = try retrying("fcntl") { clinux_ofd_test(descriptor, F_WRLCK, QEMU.writing, 1) }
        if isWritten != 0 { throw SystemError("fcntl", errno: EAGAIN) }
    }

    /// When somebody is seen to have it, and when nobody is.
    private static let shortTries = 4
    private static let longTries = 25

    static func release(_ descriptor: CInt) { _ = clinux_ofd_lock(descriptor, F_UNLCK, 0, 0) }
}

/// Who has a file open, as far as /proc shows it to this user. The kernel does not say whose such a lock is.
enum FileHolders {
    private struct Holder {
        let pid: pid_t
        let holdsLock: Bool
    }

    /// For a message: `vmd: web (process 71)`; `nil` when nobody is to be seen.
    static func describe(_ descriptor: CInt) -> String? {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { return nil }
        var found: Holder?
        for pid in numbers(in: "/proc") where pid != getpid() {
            guard let holder = holder(pid, status) else { continue }
            if holder.holdsLock {
                found = holder
                break
            }
            found = found ?? holder
        }
        if let found { return "\(title(of: found.pid)) (process \(found.pid))" }
        var mine = 0
        for number in numbers(in: "/proc/self/fd") where isSame("/proc/self/fd/\(number)", status) { mine += 1 }
        return mine > 1 ? "this process: it is named twice" : nil
    }

    private static func holder(_ pid: pid_t, _ status: stat) -> Holder? {
        var isOpen = false
        for number in numbers(in: "/proc/\(pid)/fd") where isSame("/proc/\(pid)/fd/\(number)", status) {
            isOpen = true
            // proc(5): the locks of the open file stand in its fdinfo.
            if text("/proc/\(pid)/fdinfo/\(number)").contains("OFDLCK") { return Holder(pid: pid, holdsLock: true) }
        }
        return isOpen ? Holder(pid: pid, holdsLock: false) : nil
    }

    private static func isSame(_ path: String, _ status: stat) -> Bool {
        var other = stat()
        return stat(path, &other) == 0 && other.st_dev == status.st_dev && other.st_ino == status.st_ino
    }

    /// The processes of the daemon have titles.
    private static func title(of pid: pid_t) -> String {
        let command = text("/proc/\(pid)/cmdline").prefix { $0 != "\0" }
        if command.hasPrefix("vmd: ") { return String(command.prefix(80)) }
        return String(text("/proc/\(pid)/comm").prefix { $0 != "\n" })
    }

    private static func text(_ path: String) -> String {
        guard let file = try? FileDescriptor(open: path, flags: O_RDONLY),
            let bytes = try? Stream.read(file.raw, limit: 4096)
        else { return "" }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func numbers(in folder: String) -> [CInt] {
        guard let stream = opendir(folder) else { return [] }
        defer { closedir(stream) }
        var numbers: [CInt] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let number = CInt(name) { numbers.append(number) }
        }
        return numbers
    }
}
