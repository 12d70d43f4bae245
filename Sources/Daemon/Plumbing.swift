import Glibc
import Linux

/// A child that closures can hold.
final class Child {
    private var process: ChildProcess
    let processID: pid_t
    /// Borrowed; readable once the child has ended.
    var raw: CInt { process.raw }

    init(_ process: consuming ChildProcess) {
        processID = process.processID
        self.process = process
    }

    /// How it ended, or `nil` while it runs.
    func poll() -> ChildProcess.ExitStatus? { try? process.poll() }
    func signal(_ number: CInt) { process.signal(number) }
}

extension String {
    /// For messages that are lines: what ends or moves lines becomes a blank.
    var oneLine: String {
        String(String.UnicodeScalarView(unicodeScalars.map { $0.properties.generalCategory == .control ? " " : $0 }))
    }
}

extension Optional where Wrapped == FileDescriptor {
    /// Borrowed.
    var number: CInt? {
        switch self {
        case .some(let descriptor): descriptor.raw
        case .none: nil
        }
    }
}

extension FileDescriptor {
    /// The first bytes of a small file as text.
    borrowing func readText(limit: Int) throws(SystemError) -> String {
        String(decoding: try Stream.read(raw, limit: limit), as: UTF8.self)
    }
}
