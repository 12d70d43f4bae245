/// How a disk lies in its file.
public enum ImageFormat: String, Hashable, Sendable, Codable, CaseIterable {
    case raw, qcow2, vmdk
}
