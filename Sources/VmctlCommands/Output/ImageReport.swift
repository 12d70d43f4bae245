import DiskImage
import Machine
import VMConfig

/// What is told of images, for people and for programs. What stands in an image may be anything: a line stays one.
enum ImageReport {
    // MARK: - For people

    static func describe(_ image: ImageSummary) -> String {
        var rows: [(String, String)] = [
            ("image", image.path), ("format", format(image)),
            ("disk size", "\(ScaledSize.describe(image.byteCount)) (\(image.byteCount) bytes)"),
            ("file size", "\(ScaledSize.describe(image.fileByteCount)), of which \(ScaledSize.describe(image.hostByteCount)) take room"),
        ]
        if let info = image.qcow2 {
            rows.append(("clusters", ByteSize.describe(info.clusterSize)))
            if let base = info.backing { rows.append(("base", "\(base.name)" + (base.format.map { " (\($0))" } ?? ""))) }
            if !info.snapshots.isEmpty { rows.append(("snapshots", info.snapshots.map(\.name).joined(separator: ", "))) }
            if info.isDirty { rows.append(("state", "was not closed: refcounts are mended when it is used next")) }
            if info.isCorrupt { rows.append(("state", "damaged: `vmctl image repair` mends what can be")) }
        }
        return rows.map { row in
            "\(row.0):".padded(to: 12) + UserTerminal.oneLine(row.1) + "\n"
        }.joined()
    }

    private static func format(_ image: ImageSummary) -> String {
        if let info = image.qcow2 {
            let more = [
                "version \(info.version)", info.compression.rawValue, info.hasLazyRefcounts ? "lazy refcounts" : nil,
                info.hasExtendedL2 ? "subclusters" : nil, info.refcountBits == 16 ? nil : "\(info.refcountBits)-bit refcounts",
            ]
            return "qcow2 (\(more.compactMap { $0 }.joined(separator: ", ")))"
        }
        return image.vmdkKind.map { "vmdk (\($0))" } ?? image.format.rawValue
    }

    static func table(_ snapshots: [ImageSnapshot]) -> String {
        var text = "ID".padded(to: 6) + "DATE".padded(to: 21) + "SIZE".padded(to: 9) + "NAME\n"
        for snapshot in snapshots {
            text += UserTerminal.oneLine(snapshot.id).padded(to: 6) + UTCDate.describe(UInt64(snapshot.seconds)).padded(to: 21)
            text += ScaledSize.describe(snapshot.byteCount).padded(to: 9) + UserTerminal.oneLine(snapshot.name) + "\n"
        }
        return text
    }

    // MARK: - For programs

    static func json(_ image: ImageSummary) -> String {
        let info = image.qcow2
        return object([
            ("file", string(image.path)), ("format", string(image.format.rawValue)), ("disk_size", "\(image.byteCount)"),
            ("file_size", "\(image.fileByteCount)"), ("host_size", "\(image.hostByteCount)"),
            ("variant", string(info.map { "version \($0.version)" } ?? image.vmdkKind)),
            ("cluster_size", info.map { "\($0.clusterSize)" } ?? "null"), ("base", string(info?.backing?.name)),
            ("base_format", string(info?.backing?.format)), ("dirty", info.map { "\($0.isDirty)" } ?? "null"),
            ("corrupt", info.map { "\($0.isCorrupt)" } ?? "null"), ("snapshots", json(info?.snapshots ?? [])),
        ])
    }

    static func json(_ snapshots: [ImageSnapshot]) -> String {
        list(
            snapshots.map {
                object([
                    ("id", string($0.id)), ("name", string($0.name)), ("seconds", "\($0.seconds)"), ("disk_size", "\($0.byteCount)"),
                    ("machine_state_size", "\($0.machineStateByteCount)"),
                ])
            })
    }

    static func list(_ objects: [String]) -> String { "[" + objects.joined(separator: ",\n ") + "]" }

    static func object(_ fields: [(String, String)]) -> String {
        "{" + fields.map { "\(string($0.0)): \($0.1)" }.joined(separator: ", ") + "}"
    }

    static func string(_ text: String?) -> String { StatusJSON.string(text) }
}

extension String {
    /// With blanks up to a width, one at least.
    func padded(to width: Int) -> String { self + String(repeating: " ", count: max(1, width - count)) }
}

/// Points in time as text, in UTC: the same for every reader.
enum UTCDate {
    /// `2026-11-21 17:05:09`.
    static func describe(_ seconds: UInt64) -> String {
        let days = Int64(clamping: seconds / 86400)
        let rest = seconds % 86400
        // Civil date of a day number (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
        let shifted = days + 719_468
        let era = shifted / 146_097
        let dayOfEra = shifted % 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let part = (5 * dayOfYear + 2) / 153
        let day = dayOfYear - (153 * part + 2) / 5 + 1
        let month = part < 10 ? part + 3 : part - 9
        let year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        func two(_ number: Int64) -> String { number < 10 ? "0\(number)" : "\(number)" }
        let time = [Int64(rest / 3600), Int64(rest / 60 % 60), Int64(rest % 60)].map(two).joined(separator: ":")
        return "\(year)-\(two(month))-\(two(day)) \(time)"
    }
}

extension ImageReport {
    static func describe(_ check: ImageCheck) -> String {
        var parts: [String] = []
        if check.damageFixed > 0 { parts.append("\(check.damageFixed) damaged entries mended") }
        if check.leaksFixed > 0 { parts.append("\(check.leaksFixed) clusters given back") }
        if check.damage > 0 { parts.append("\(check.damage) damaged entries") }
        if check.leaks > 0 { parts.append("\(check.leaks) clusters that nothing uses") }
        if check.errors > 0 { parts.append("\(check.errors) places that could not be read") }
        if check.damage == 0, check.leaks == 0, check.errors == 0 { parts.append("no errors") }
        if check.total > 0 { parts.append("\(check.allocated) of \(check.total) in use") }
        return "\(UserTerminal.oneLine(check.path)): \(parts.joined(separator: ", "))\n"
    }

    static func json(_ check: ImageCheck) -> String {
        object([
            ("file", string(check.path)), ("format", string(check.format.rawValue)), ("damage", "\(check.damage)"),
            ("leaks", "\(check.leaks)"), ("errors", "\(check.errors)"), ("allocated", "\(check.allocated)"), ("total", "\(check.total)"),
            ("findings", list(check.findings.map(string))),
        ])
    }
}
