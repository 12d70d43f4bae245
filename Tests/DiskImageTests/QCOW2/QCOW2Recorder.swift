import DiskImage
import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

/// Writes down what happens to a file, so that a crash can be played at any point, and makes calls fail.
final class Recorder: FileObserver {
    enum Change: Sendable {
        case write([UInt8], offset: UInt64)
        case synchronize
        case resize(UInt64)
        case zero(offset: UInt64, count: UInt64)
    }

    private struct State: Sendable {
        var changes: [Change] = []
        /// Calls until one fails, and with what.
        var failure: (after: Int, errno: CInt, times: Int)?
        var failed = 0
    }

    private let state = Mutex(State())

    /// What happens while somebody waits for the medium.
    private let duringSynchronize = Mutex<(@Sendable () -> Void)?>(nil)
    func duringNextSynchronize(_ body: (@Sendable () -> Void)?) { duringSynchronize.withLock { $0 = body } }

    func willChange(_ change: FileChange) throws(SystemError) {
        if case .synchronize = change {
            let body = duringSynchronize.withLock { body in
                defer { body = nil }
                return body
            }
            body?()
        }
        let code: CInt? = state.withLock { state in
            if var failure = state.failure {
                failure.after -= 1
                state.failure = failure
                if failure.after < 0 {
                    failure.times -= 1
                    state.failed += 1
                    state.failure = failure.times > 0 ? failure : nil
                    // A short write: a part of it is in the file, as far as the next reader knows anything at all.
                    return failure.errno
                }
            }
            switch change {
            case .write(let bytes, let offset): state.changes.append(.write(Array(bytes), offset: offset))
            case .synchronize: state.changes.append(.synchronize)
            case .resize(let count): state.changes.append(.resize(count))
            case .zero(let offset, let count, _): state.changes.append(.zero(offset: offset, count: count))
            }
            return nil
        }
        if let code { throw SystemError("test", errno: code) }
    }

    var changes: [Change] { state.withLock { $0.changes } }
    var count: Int { state.withLock { $0.changes.count } }
    var failures: Int { state.withLock { $0.failed } }
    func fail(after calls: Int, with errno: CInt, times: Int = 1) { state.withLock { $0.failure = (calls, errno, times) } }
    func heal() { state.withLock { $0.failure = nil } }

    /// The file after a crash: what was synchronized is there, of the rest what `survives` says.
    static func replay(_ changes: ArraySlice<Change>, _ survives: () -> Bool = { true }) throws -> FileDescriptor {
        let lastSync = changes.lastIndex { if case .synchronize = $0 { true } else { false } } ?? changes.startIndex
        let file = try FileDescriptor.memory("crashed", byteCount: 0)
        let number = file.raw
        var size: UInt64 = 0
        for (index, change) in zip(changes.indices, changes) where index <= lastSync || survives() {
            switch change {
            case .write(let bytes, let offset):
                try #require(bytes.withUnsafeBytes { pwrite(number, $0.baseAddress, $0.count, off_t(offset)) } == bytes.count)
                size = max(size, offset + UInt64(bytes.count))
            case .resize(let count):
                try #require(ftruncate(number, off_t(count)) == 0)
                size = count
            case .zero(let offset, let count):
                let end = min(size, offset + count)
                if offset < end {
                    let zeros = [UInt8](repeating: 0, count: Int(end - offset))
                    try #require(zeros.withUnsafeBytes { pwrite(number, $0.baseAddress, $0.count, off_t(offset)) } == zeros.count)
                }
            case .synchronize: break
            }
        }
        return file
    }
}

extension ImageFile {
    /// A file of memory.
    static func memory(_ observer: (any FileObserver)? = nil) throws -> ImageFile {
        ImageFile(owning: try FileDescriptor.memory("disk", byteCount: 0), name: "disk", isReadOnly: false, observer: observer)
    }

    /// All its bytes.
    func contents() throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(try byteCount()))
        let count = try bytes.withUnsafeMutableBytes { try read(into: $0, at: 0) }
        try #require(count == bytes.count)
        return bytes
    }
}

extension QCOW2Options {
    /// Any that an image can have.
    static func random(byteCount: UInt64, _ random: inout SplitMix64) -> QCOW2Options {
        var options = QCOW2Options(byteCount: byteCount)
        options.clusterSize = 512 << UInt64.random(in: 0...8, using: &random)
        options.version = Int.random(in: 0...4, using: &random) == 0 ? 2 : 3
        if options.version == 3 {
            options.refcountBits = 1 << Int.random(in: 0...6, using: &random)
            options.lazyRefcounts = Int.random(in: 0...3, using: &random) == 0
            if Bool.random(using: &random) { options.compression = .zstd }
            options.extendedL2 = options.clusterSize >= 16384 && Int.random(in: 0...2, using: &random) == 0
        }
        return options
    }
}
