/// An image as somebody names it: a path, and its format when that was said.
public struct ImageLocation: Hashable, Sendable {
    public var path: String
    /// What the configuration or a prefix said.
    public var format: ImageFormat?

    public init(path: String, format: ImageFormat? = nil) {
        self.path = path
        self.format = format
    }

    /// A path with `raw:`, `qcow2:` or `vmdk:` in front, or without.
    public init(_ text: String) {
        for format in ImageFormat.allCases where text.hasPrefix(format.rawValue + ":") {
            self.init(path: String(text.dropFirst(format.rawValue.utf8.count + 1)), format: format)
            return
        }
        self.init(path: text)
    }

    /// What was said, or else what the path's suffix says.
    public var statedFormat: ImageFormat? { format ?? Self.format(bySuffixOf: path) }

    /// `.raw` and `.iso`, `.qcow2` and `.vmdk`, in any case. Others mean nothing: a `.img` may be any of them.
    static func format(bySuffixOf path: String) -> ImageFormat? {
        guard let dot = path.lastIndex(of: "."), !path[dot...].contains("/") else { return nil }
        switch path[path.index(after: dot)...].lowercased() {
        case "raw", "iso": return .raw
        case "qcow2": return .qcow2
        case "vmdk": return .vmdk
        default: return nil
        }
    }
}
