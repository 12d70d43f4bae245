/// The histories of several disks that belong together, as a machine's do: a step of all of them, or of none.
///
/// All are opened and locked first, and stay so as long as this lives; what a step makes of a disk is locked before it gets the
/// disk's path. So nobody opens one of them before all are done, or as they were again. All are asked before the first step
/// whether they can; when one fails all the same, those before it go back.
public struct DiskHistories: Sendable {
    private let disks: [ImageHistory]

    public init(_ locations: [ImageLocation], allowedBases: [String] = []) throws(ImageError) {
        disks = try locations.map { location throws(ImageError) in try ImageHistory(location, allowedBases: allowedBases) }
    }

    /// - Parameter name: the point's; of several disks each one's has the disk's number at its end, in front of the suffix.
    /// - Returns: the points' names, in the disks' order.
    public func addPoint(_ name: String) throws(ImageError) -> [String] {
        let names = names(name)
        for (disk, name) in zip(disks, names) { try disk.checkPoint(name) }
        try all(names) { disk, name throws(ImageError) in try disk.addPoint(name) }
        return names
    }

    /// To the images below; when all disks are what those hold already, to the ones below them.
    /// - Returns: the paths of the images that the disks are like now.
    public func rollBack() throws(ImageError) -> [String] {
        // A guest may have left one of its disks alone since the point, which is no reason to go back to another.
        let isUnchanged = try disks.map { disk throws(ImageError) in try disk.isUnchanged() }
        let step = isUnchanged.contains(false) ? 1 : 2
        let bases = try disks.map { disk throws(ImageError) in try disk.previous(step) }
        try all(bases) { disk, base throws(ImageError) in try disk.rollBack(to: base) }
        return bases.map(\.path)
    }

    /// - Parameter discards: what was written since is thrown away, and cannot be had back.
    public func rollForward(discards: Bool) throws(ImageError) {
        let next = try disks.map { disk throws(ImageError) in try disk.next(discards: discards) }
        try all(next) { disk, next throws(ImageError) in try disk.rollForward(to: next) }
    }

    private func names(_ name: String) -> [String] {
        guard disks.count > 1 else { return [name] }
        let dot = name.lastIndex(of: ".") ?? name.endIndex
        return disks.indices.map { "\(name[..<dot])-\($0)\(name[dot...])" }
    }

    /// - Parameter goals: one for each disk.
    private func all<Goal>(
        _ goals: [Goal], _ step: (ImageHistory, Goal) throws(ImageError) -> ImageHistory.Step
    ) throws(ImageError) {
        var steps: [ImageHistory.Step] = []
        // The locks of what there was hold as long as those of what there is.
        defer { withExtendedLifetime((disks, steps)) {} }
        do throws(ImageError) {
            for (disk, goal) in zip(disks, goals) { steps.append(try step(disk, goal)) }
        } catch {
            var left: ImageError?
            for earlier in steps.reversed() { do throws(ImageError) { try earlier.undo() } catch { left = left ?? error } }
            guard let left else { throw error }
            throw ImageError(error.kind, error.file, "\(error.reason); and what was done before could not be undone: \(left)")
        }
        for step in steps { step.finish() }
    }
}
