import Glibc
import Testing

/// Whole guests, one at a time: two at once on a small machine would only wait for each other. The suites are in the
/// files beside this one.
@Suite(.serialized, .timeLimit(.minutes(10))) struct GuestTests {}

/// Where the things under test are. `make test` builds them; the variables serve whoever built them elsewhere.
enum Paths {
    static let root = String(#filePath.dropLast("Tests/GuestTests/Support.swift".count))
    static let vmctl = variable("VMCTL") ?? root + ".build/release/vmctl"
    static let vmd = variable("VMD") ?? root + ".build/release/vmd"
    static let guests = variable("VMD_GUESTS") ?? root + ".build-guests"
    static let kernel = guests + "/vmlinuz"
    static let initrd = guests + "/initramfs.cpio"
    /// The same with virtio drivers to load.
    static let virtioInitrd = guests + "/initramfs-virtio.cpio"
    /// A disk with a Debian system on it, where one could be made.
    static let debian = guests + "/debian.qcow2"
    static let isoMaker = "/usr/bin/xorriso"
    static let multiboot = guests + "/multiboot/elf32"
    /// Kernels, initramfs and program of 32 bit, where their archive could be reached.
    static let guests32 = guests + "/i386"
    static let has32BitGuests = access(guests32 + "/initramfs.cpio", R_OK) == 0
    /// Kernels and discs that are no Linux, where their packages could be had.
    static let others = guests + "/others"
    static let hasMach = access(guests32 + "/mach.raw", R_OK) == 0
    /// Debian's installer, where somebody has fetched it.
    static let installer = guests + "/installer"
    static let hasInstaller = access(installer + "/installer.iso", R_OK) == 0
    /// Seconds to wait for anything that should take far less: the machine may be busy with other tests.
    static let patience = variable("GUEST_PATIENCE").flatMap(Double.init) ?? 60

    /// The engine that guests run on, when it shall not be the default.
    static let engine = variable("GUEST_ENGINE").map { ["--engine", $0] } ?? []

    static func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
}

extension Trait where Self == ConditionTrait {
    /// Needs a file that `make others` fetches from Debian's archive.
    static func fetched(_ file: String) -> Self {
        .enabled(if: access("\(Paths.others)/\(file)", R_OK) == 0, "no \(file): make others fetches it, where it can be had")
    }
}

/// The arguments that boot the Debian kernel with the test initramfs.
func boot(_ words: String = "", memory: String = "512M") -> [String] {
    ["run", "-m", memory, "-b", Paths.kernel, "--initrd", Paths.initrd, "--cmdline", "console=ttyS0 \(words)"]
        + Paths.engine
}

extension GuestProcess {
    static let prompt = "guest# "

    /// A guest that waits at its shell's prompt.
    static func atShell(_ words: String = "quiet", input: Input = .pipe) throws -> GuestProcess {
        let guest = try GuestProcess(boot(words), input: input)
        _ = try guest.wait(for: prompt)
        return guest
    }
}

extension GuestProcess {
    /// Runs a program in the guest's foreground that has said "ready" and from now on has the console to itself: what
    /// is typed before that, the shell may take for its own.
    func start(_ command: String) throws {
        send("sh -c 'echo re\"\"ady; exec \(command)'\n")
        _ = try wait(for: "ready\n")
    }
}

enum Clock {
    static func seconds(_ clock: clockid_t = CLOCK_MONOTONIC) -> Double {
        var now = timespec()
        clock_gettime(clock, &now)
        return Double(now.tv_sec) + Double(now.tv_nsec) * 1e-9
    }
}

enum File {
    static func bytes(_ path: String, limit: Int = 1 << 20) throws -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw GuestFailure(description: "\(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while bytes.count < limit {
            let count = read(descriptor, &buffer, min(buffer.count, limit - bytes.count))
            if count <= 0 { break }
            bytes += buffer[..<count]
        }
        return bytes
    }

    static func text(_ path: String) throws -> String { String(decoding: try bytes(path), as: UTF8.self) }

    /// The files that a pattern of the shell's matches.
    static func paths(_ pattern: String) -> [String] {
        var found = glob_t()
        defer { globfree(&found) }
        guard glob(pattern, 0, nil, &found) == 0 else { return [] }
        return (0..<Int(found.gl_pathc)).compactMap { index in found.gl_pathv[index].map { String(cString: $0) } }
    }
}

/// A folder of files that the test made, gone with it.
final class Scratch {
    let path: String

    init() throws {
        var template = Array("/tmp/guest-tests-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw GuestFailure(description: "mkdtemp: \(errno)") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private var files: [String] = []

    /// A symbolic link to an absolute path.
    func link(_ name: String, to target: String) throws {
        guard symlink(target, "\(path)/\(name)") == 0 else { throw GuestFailure(description: "\(path)/\(name): \(errno)") }
        files.append("\(path)/\(name)")
    }

    /// The path of a file that somebody else will make.
    func later(_ name: String) -> String {
        files.append("\(path)/\(name)")
        return "\(path)/\(name)"
    }

    /// A file with that content, stretched with a hole to `byteCount`.
    func file(_ name: String, _ content: [UInt8] = [], byteCount: Int? = nil, mode: mode_t = 0o600) throws -> String {
        let file = "\(path)/\(name)"
        let descriptor = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
        guard descriptor >= 0, write(descriptor, content, content.count) == content.count else {
            throw GuestFailure(description: "\(file): \(errno)")
        }
        if let byteCount { ftruncate(descriptor, byteCount) }
        close(descriptor)
        files.append(file)
        return file
    }

    deinit {
        for file in files { unlink(file) }
        rmdir(path)
    }
}

/// The MD5 checksum as md5sum(1) prints it. Guest and host both have that program.
func checksum(_ bytes: [UInt8]) throws -> String {
    let scratch = try Scratch()
    let process = try GuestProcess([], input: .file(try scratch.file("bytes", bytes)), program: "/usr/bin/md5sum")
    guard try process.status() == 0 else { throw GuestFailure(description: "md5sum: \(process.errorText)") }
    return String(process.text.prefix { $0 != " " })
}

/// What a kernel of `Guests` has printed: one `name=value` a line.
struct KernelReport {
    let lines: [String]

    init(_ text: String) { lines = text.split(separator: "\n").map(String.init) }

    func values(_ name: String) -> [String] {
        lines.filter { $0.hasPrefix(name + "=") }.map { String($0.dropFirst(name.count + 1)) }
    }
    func numbers(_ name: String) -> [UInt32?] { values(name).map { UInt32($0.dropFirst(2), radix: 16) } }

    /// As the kernels sum up bytes.
    static func sum(_ bytes: [UInt8]) -> UInt32 { bytes.reduce(0) { $0 &* 31 &+ UInt32($1) } }
}
