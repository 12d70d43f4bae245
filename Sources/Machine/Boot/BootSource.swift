public import Linux

/// Where a machine gets a file from that it boots with.
public enum BootSource: Hashable, Sendable {
    /// It opens this path.
    case path(String)
    /// Somebody has opened it: a process in a sandbox can open nothing.
    case opened(OpenedFile)

    /// What to call it in messages.
    var name: String {
        switch self {
        case .path(let path): path
        case .opened(let file): file.name
        }
    }
}

/// A file for a multiboot kernel, with the text that tells it what for.
public struct BootModuleSource: Hashable, Sendable {
    public var file: BootSource
    public var arguments: String

    public init(_ file: BootSource, arguments: String = "") {
        self.file = file
        self.arguments = arguments
    }

    /// - Parameter text: FILE or FILE,ARGUMENTS.
    public init(_ text: String) {
        let parts = text.split(separator: ",", maxSplits: 1, omittingEmptySubsequences: false)
        self.init(.path(String(parts.first ?? "")), arguments: parts.count > 1 ? String(parts[1]) : "")
    }
}

/// A file that was opened elsewhere, with the name it had there. It stays open as long as a configuration or a machine
/// refers to it.
public final class OpenedFile: Hashable, Sendable {
    let file: RegularFile

    /// What to call it in messages; multiboot kernels get it as well.
    public var name: String { file.path }

    init(_ file: consuming RegularFile) { self.file = file }

    /// - Parameters:
    ///   - descriptor: open for reading, of a regular file.
    ///   - name: its path, where it was opened.
    public convenience init(owning descriptor: consuming FileDescriptor, name: String) throws(MachineError) {
        do {
            self.init(try RegularFile(owning: descriptor, name))
        } catch {
            throw MachineError("\(name): \(error): hand over a regular file")
        }
    }

    public static func == (a: OpenedFile, b: OpenedFile) -> Bool { a === b }
    public func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(self)) }
}
