/// The histories of several disks that belong together, as a machine's do: a step of all of them, or of none.
///
/// All are asked first whether they can; when one fails all the same, those before it go back.
public struct DiskHistories: Sendable {
    private let disks: [ImageHistory]

    public init(_ disks: [ImageHistory]) { self.disks = disks }

    /// - Parameter name: the point's; of several disks each one's has the disk's number at its end, in front of the suffix.
    /// - Returns: the points' names, in the disks' order.
    public func addPoint(_ name: String) throws(ImageError) -> [String] {
        let names = names(name)
        for (disk, name) in zip(disks, names) { try disk.checkPoint(name) }
        try all { index throws(ImageError) in
            try disks[index].addPoint(names[index])
        } undo: { index throws(ImageError) in
            try disks[index].removePoint(names[index])
        }
        return names
    }

    /// - Returns: the paths of the images that the disks are like now.
    public func rollBack() throws(ImageError) -> [String] {
        for disk in disks { try disk.checkRollBack() }
        var bases: [String] = []
        try all { index throws(ImageError) in
            bases.append(try disks[index].rollBack())
        } undo: { index throws(ImageError) in
            try disks[index].rollForward(discards: false)
        }
        return bases
    }

    /// - Parameter discards: what was written since is thrown away, and cannot be had back.
    public func rollForward(discards: Bool) throws(ImageError) {
        for disk in disks { try disk.checkRollForward(discards: discards) }
        try all { index throws(ImageError) in
            try disks[index].rollForward(discards: discards)
        } undo: { index throws(ImageError) in
            _ = try disks[index].rollBack()
        }
    }

    private func names(_ name: String) -> [String] {
        guard disks.count > 1 else { return [name] }
        let dot = name.lastIndex(of: ".") ?? name.endIndex
        return disks.indices.map { "\(name[..<dot])-\($0)\(name[dot...])" }
    }

    private func all(
        _ step: (Int) throws(ImageError) -> Void, undo: (Int) throws(ImageError) -> Void
    ) throws(ImageError) {
        for index in disks.indices {
            do throws(ImageError) {
                try step(index)
            } catch {
                for earlier in (0..<index).reversed() {
                    do throws(ImageError) {
                        try undo(earlier)
                    } catch let second {
                        throw ImageError(error.kind, error.file, "\(error.reason); and what was done before could not be undone: \(second)")
                    }
                }
                throw error
            }
        }
    }
}
