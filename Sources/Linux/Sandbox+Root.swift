import CLinux
import Glibc

extension Sandbox {
    /// Makes the new root and lets go of the old one.
    func enterRoot(_ report: inout Report) {
        guard report.attempt("mount namespace", { clinux_unshare(Namespace.mount.flag) }) else { return }
        do {
            // Nothing that we mount may be seen outside.
            try Self.mount(nil, "/", nil, Self.recursive | Self.isPrivate, nil)
            switch root {
            case .host: break
            case .empty: try Self.enterEmptyRoot()
            case .libraries: try enterLibraryRoot(&report)
            }
        } catch {
            report.failed("root", error)
        }
    }

    /// Folders of the shared libraries, for LD_LIBRARY_PATH of a program that is started in `Root.libraries`.
    public static var libraryPath: String {
        var folders: [String] = []
        for object in loadedObjects() {
            let folder = Self.folder(of: object)
            if !folders.contains(folder) { folders.append(folder) }
        }
        return folders.joined(separator: ":")
    }

    /// Paths of the interpreter and the libraries that the program has loaded.
    static func loadedObjects() -> [String] {
        var paths: [String] = []
        if let interpreter = clinux_interpreter() { paths.append(String(cString: interpreter)) }
        var index = 0
        while true {
            var path = [CChar](repeating: 0, count: Int(PATH_MAX))
            let length = clinux_loaded_object(index, &path, path.count)
            if length < 0 { return paths }
            index += 1
            let name = String(decoding: path.prefix(length).map { UInt8(bitPattern: $0) }, as: UTF8.self)
            // The program itself has no name here, and the vDSO none that is a path.
            guard name.hasPrefix("/"), length < path.count else { continue }
            let clean = withoutDots(name)
            if !paths.contains(clean) { paths.append(clean) }
        }
    }

    /// A name with ".." in it (a run path relative to the program) by its real folder.
    private static func withoutDots(_ path: String) -> String {
        guard path.contains("/.."), let real = realpath(folder(of: path), nil) else { return path }
        defer { free(real) }
        return String(cString: real) + "/" + (path.split(separator: "/").last.map(String.init) ?? "")
    }

    private static func folder(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return "/" }
        return String(path[..<slash])
    }

    private static func enterEmptyRoot() throws(SystemError) {
        // One inode: the folder itself.
        let place = try mountTemporary("size=4k,nr_inodes=1,mode=0555")
        try addAttributes(place, readOnly | noSetUID | noDevices | noExecution)
        try pivot(to: place)
    }

    private func enterLibraryRoot(_ report: inout Report) throws(SystemError) {
        let place = try Self.mountTemporary("size=1m,nr_inodes=4096,mode=0755")
        for object in Self.loadedObjects() {
            do {
                try Self.makeFolders(place + Self.folder(of: object))
                let target = place + object
                _ = try FileDescriptor(open: target, flags: O_CREAT | O_WRONLY, mode: 0o444)
                try Self.mount(object, target, nil, Self.bind, nil)
                try Self.addAttributes(target, Self.readOnly | Self.noSetUID | Self.noDevices)
            } catch {
                report.failed("library \(object)", error)
            }
        }
        // Where a child mounts its own root.
        try Self.makeFolders(place + Self.mountPlaces[0])
        try Self.addAttributes(place, Self.readOnly | Self.noSetUID | Self.noDevices)
        try Self.pivot(to: place)
    }

    /// The umask must not keep other users from what is inside.
    private static func makeFolders(_ path: String) throws(SystemError) {
        let before = Glibc.umask(0)
        defer { _ = Glibc.umask(before) }
        var current = ""
        for part in path.split(separator: "/") {
            current += "/" + part
            do {
                _ = try retrying("mkdir") { mkdir(current, 0o755) }
            } catch where error.errno == EEXIST {
                continue
            }
        }
    }

    /// Folders that exist on most systems and hold none of our libraries.
    private static let mountPlaces = ["/proc", "/sys", "/dev", "/run"]

    /// A tmpfs on the first of those that exist.
    private static func mountTemporary(_ options: String) throws(SystemError) -> String {
        for place in mountPlaces {
            do {
                try mount("tmpfs", place, "tmpfs", 0, options)
                return place
            } catch where error.isMissing {
                continue
            }
        }
        throw SystemError("mount", errno: ENOENT)
    }

    /// pivot_root(2): "." twice puts the old root on top of the new one, where it can be let go of without a folder for
    /// it.
    private static func pivot(to place: String) throws(SystemError) {
        _ = try retrying("chdir") { chdir(place) }
        let dot = UInt8(ascii: ".")
        var path: [UInt8] = [dot, 0]
        _ = try retrying("pivot_root") {
            path.withUnsafeMutableBytes { bytes in
                let address = UInt(bitPattern: bytes.baseAddress)
                return clinux_syscall(Int(SYS_pivot_root), address, address, 0, 0, 0, 0)
            }
        }
        _ = try retrying("umount2") { clinux_umount(".", 2) }  // MNT_DETACH
        _ = try retrying("chdir") { chdir("/") }
    }

    private static let bind: UInt = 0x1000
    private static let recursive: UInt = 0x4000
    private static let isPrivate: UInt = 0x4_0000

    private static func mount(
        _ source: String?, _ target: String, _ type: String?, _ flags: UInt, _ options: String?
    ) throws(SystemError) {
        _ = try retrying("mount") { clinux_mount(source, target, type, flags, options) }
    }

    private static let readOnly: UInt64 = 1
    private static let noSetUID: UInt64 = 2
    private static let noDevices: UInt64 = 4
    private static let noExecution: UInt64 = 8

    /// mount_setattr(2), since Linux 5.12: adds to what the mount has, where a remount would have to know and repeat it
    /// (flags that a user namespace may not clear).
    private static func addAttributes(_ path: String, _ attributes: UInt64) throws(SystemError) {
        _ = try retrying("mount_setattr") { clinux_add_mount_attributes(path, attributes) }
    }
}
