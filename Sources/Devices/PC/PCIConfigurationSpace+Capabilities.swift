/// The list of capabilities (PCI 3.0, section 6.7).
extension PCIConfigurationSpace {
    /// Status: the list is there.
    private static let hasCapabilities: UInt16 = 0x0010

    /// Adds a capability to the list's end.
    /// - Parameters:
    ///   - offset: where it lies: behind the header, a multiple of 4.
    ///   - body: what follows its identifier and the pointer to the next. Read-only until `allowWrites`.
    public mutating func addCapability(_ identifier: UInt8, at offset: UInt8, _ body: [UInt8]) {
        precondition(offset >= 0x40 && offset % 4 == 0 && Int(offset) + 2 + body.count <= Self.byteCount)
        var link = Register.capabilities
        while case let next = get(link, as: UInt8.self), next != 0 { link = next + 1 }
        set(Register.status, get(Register.status, as: UInt16.self) | Self.hasCapabilities)
        set(link, offset)
        set(offset, identifier)
        for (index, byte) in body.enumerated() { set(offset + 2 + UInt8(index), byte) }
    }
}
