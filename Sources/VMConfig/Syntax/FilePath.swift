/// Paths as text: nothing here asks the file system.
enum FilePath {
    /// `path`, from the folder that `file` lies in unless it is absolute.
    static func resolved(_ path: String, from file: String) -> String {
        guard !path.hasPrefix("/"), let slash = file.lastIndex(of: "/") else { return path }
        return file[...slash] + path
    }

    /// The path without empty and `.` parts, and without `..` where a part stands before it. Only to compare: a
    /// symbolic link may lead `..` elsewhere.
    static func normalized(_ path: String) -> String {
        var parts: [Substring] = []
        for part in path.split(separator: "/") where part != "." {
            if part == "..", let last = parts.last, last != ".." { parts.removeLast() } else { parts.append(part) }
        }
        return (path.hasPrefix("/") ? "/" : "") + parts.joined(separator: "/")
    }
}
