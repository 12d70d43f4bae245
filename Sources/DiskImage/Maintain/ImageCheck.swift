import Linux

/// Whether images are sound.
public struct ImageCheck: Sendable {
    public let path: String
    public let format: ImageFormat
    /// Data may be wrong, or become wrong.
    public let damage: Int
    /// Room that nothing uses.
    public let leaks: Int
    /// What could not be looked at.
    public let errors: Int
    public let damageFixed: Int
    public let leaksFixed: Int
    /// Clusters or grains; 0 where there are none.
    public let allocated: UInt64
    public let total: UInt64
    /// One line each, not all of very many.
    public let findings: [String]

    /// Reads tables only; no other file is opened unless `isChain`.
    public static func run(_ location: ImageLocation, isChain: Bool, allowedBases: [String]) throws(ImageError) -> [ImageCheck] {
        var opening = ImageOpening(isReadOnly: true, allowedBases: allowedBases)
        opening.keepsFormat = false
        opening.opensBases = isChain
        let chain = try ImageChain(location, opening)
        var results: [ImageCheck] = []
        for (member, number) in zip(chain.members, chain.descriptors.numbers) {
            results.append(try ImageCheck(try ImageFile.borrowing(number, member.name), member.format, repair: .none))
        }
        return results
    }

    /// Mends what can be mended.
    public static func repair(_ location: ImageLocation, leaksOnly: Bool) throws(ImageError) -> ImageCheck {
        var opening = ImageOpening(isReadOnly: false)
        opening.opensBases = false
        let (file, format) = try ImageChain(location, opening).top()
        guard format != .raw else {
            throw ImageError(.refused, location.path, "a raw image has no tables: only qcow2 and VMDK images are repaired")
        }
        guard format == .qcow2 || !leaksOnly else {
            throw ImageError(.refused, location.path, "only qcow2 images give back what nothing uses: repair it without -l, or convert it")
        }
        return try ImageCheck(file, format, repair: leaksOnly ? .leaks : .all)
    }

    private init(_ file: ImageFile, _ format: ImageFormat, repair: QCOW2Repair) throws(ImageError) {
        path = file.name
        self.format = format
        switch format {
        case .raw:
            // All bytes are the guest's: nothing can be wrong.
            _ = try RawImage(file)
            (damage, leaks, errors, damageFixed, leaksFixed, allocated, total, findings) = (0, 0, 0, 0, 0, 0, 0, [])
        case .vmdk:
            let check = try VMDKCheck(file)
            var left = check.count
            if repair != .none {
                try check.mend(file)
                left = try VMDKCheck(file).count
            }
            (damage, leaks, errors, damageFixed, leaksFixed) = (left, 0, 0, max(0, check.count - left), 0)
            (allocated, total, findings) = (check.allocatedGrains, check.totalGrains, check.findings)
        case .qcow2:
            let image = try QCOW2Image(file, for: .check)
            let check = try image.check(repair: repair)
            if repair != .none { try image.close() }
            (damage, leaks, errors) = (check.corruptions - check.corruptionsFixed, check.leaks - check.leaksFixed, check.errors)
            (damageFixed, leaksFixed) = (check.corruptionsFixed, check.leaksFixed)
            (allocated, total, findings) = (check.allocatedClusters, check.totalClusters, check.messages)
        }
    }
}
