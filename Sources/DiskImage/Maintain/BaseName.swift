import Linux

/// How an image names its base.
public enum BaseName {
    /// What to write into an image for a base: a name below the image's folder where that is so, or an absolute path, which
    /// then needs the administrator's word.
    /// - Parameters:
    ///   - base: a path, as somebody typed it.
    ///   - image: the path that the image has or will have.
    public static func name(of base: String, in image: String) throws(ImageError) -> (name: String, needsPermission: Bool) {
        let path: String
        let folder: String
        do {
            path = try FilePaths.resolved(base)
            folder = try FilePaths.resolved(NewFile.folder(of: image))
        } catch {
            throw ImageError(.system(error), base, "\(error.reason)")
        }
        let prefix = folder == "/" ? "/" : folder + "/"
        guard path.hasPrefix(prefix), path != prefix else { return (path, true) }
        let name = String(path.dropFirst(prefix.count))
        // A colon would make it a protocol's.
        return (name.contains(":") ? "./" + name : name, false)
    }
}
