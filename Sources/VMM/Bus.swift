/// The size of one access in bytes.
public enum AccessWidth: Int, Sendable, CaseIterable {
    case byte = 1, word = 2, dword = 4, qword = 8

    /// All ones at this width: what a bus nobody drives reads as.
    @inlinable public var allOnes: UInt64 { self == .qword ? ~0 : (1 << UInt64(rawValue * 8)) &- 1 }
}

/// Anything a vCPU reaches with IN and OUT. `offset` counts from the device's first port.
/// Called on vCPU threads: must not throw or trap, whatever the guest asks.
public protocol PortDevice: AnyObject, Sendable {
    func read(_ offset: UInt16, _ width: AccessWidth) -> UInt32
    func write(_ offset: UInt16, _ width: AccessWidth, _ value: UInt32)
}

/// Anything a vCPU reaches with loads and stores outside RAM. `offset` counts from the device's first byte.
public protocol MMIODevice: AnyObject, Sendable {
    func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64
    func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64)
}

/// The 64 K ports. Built once by the machine's wiring and immutable once vCPUs run, so look-ups never contend.
/// Ports nobody claims read all ones and swallow writes.
public final class PortBus: Sendable {
    public struct Claim: Sendable {
        public let ports: ClosedRange<UInt16>
        public let device: any PortDevice
        public init(_ ports: ClosedRange<UInt16>, _ device: any PortDevice) {
            self.ports = ports
            self.device = device
        }
    }

    private let claims: [Claim]
    /// Index into `claims` for each port, 0xFF where nobody answers.
    private let owner: [UInt8]

    /// - Parameter remainder: answers those of its ports that no claim has. PCI's base addresses move while CPUs run, so
    ///   their bus looks them up itself; fixed ports win over them and cost nothing more.
    /// - Precondition: claims do not overlap and are at most 254, the remainder included: the machine's own wiring.
    public init(_ claims: [Claim], remainder: Claim? = nil) {
        precondition(claims.count < (remainder == nil ? 0xFF : 0xFE))
        var owner = [UInt8](repeating: 0xFF, count: 0x10000)
        if let remainder { for port in remainder.ports { owner[Int(port)] = UInt8(claims.count) } }
        for (index, claim) in claims.enumerated() {
            for port in claim.ports {
                let isFree = owner[Int(port)] == 0xFF || owner[Int(port)] == claims.count
                precondition(isFree, "two devices claim port \(port)")
                owner[Int(port)] = UInt8(index)
            }
        }
        self.claims = claims + (remainder.map { [$0] } ?? [])
        self.owner = owner
    }

    public func read(_ port: UInt16, _ width: AccessWidth) -> UInt32 {
        let index = Int(owner[Int(port)])
        guard index < claims.count else { return UInt32(truncatingIfNeeded: width.allOnes) }
        let claim = claims[index]
        return claim.device.read(port &- claim.ports.lowerBound, width) & UInt32(truncatingIfNeeded: width.allOnes)
    }

    public func write(_ port: UInt16, _ width: AccessWidth, _ value: UInt32) {
        let index = Int(owner[Int(port)])
        guard index < claims.count else { return }
        let claim = claims[index]
        claim.device.write(port &- claim.ports.lowerBound, width, value & UInt32(truncatingIfNeeded: width.allOnes))
    }
}

/// Physical addresses that are not RAM. Addresses nobody claims read all ones and swallow writes, as on a PC.
public final class MMIOBus: Sendable {
    public struct Claim: Sendable {
        public let addresses: Range<UInt64>
        public let device: any MMIODevice
        public init(_ addresses: Range<UInt64>, _ device: any MMIODevice) {
            self.addresses = addresses
            self.device = device
        }
    }

    /// Sorted by address.
    private let claims: [Claim]
    private let remainder: Claim?

    /// - Parameter remainder: answers those of its addresses that no claim has: PCI's window.
    /// - Precondition: claims do not overlap.
    public init(_ claims: [Claim], remainder: Claim? = nil) {
        self.remainder = remainder
        self.claims = claims.sorted { $0.addresses.lowerBound < $1.addresses.lowerBound }
        for (a, b) in zip(self.claims, self.claims.dropFirst()) {
            precondition(a.addresses.upperBound <= b.addresses.lowerBound, "MMIO claims overlap")
        }
    }

    private func claim(at address: UInt64) -> Claim? {
        var low = 0
        var high = claims.count
        while low < high {
            let middle = (low + high) / 2
            if claims[middle].addresses.upperBound <= address { low = middle + 1 } else { high = middle }
        }
        if low < claims.count, claims[low].addresses.contains(address) { return claims[low] }
        guard let remainder, remainder.addresses.contains(address) else { return nil }
        return remainder
    }

    public func read(_ address: UInt64, _ width: AccessWidth) -> UInt64 {
        guard let claim = claim(at: address) else { return width.allOnes }
        return claim.device.read(address - claim.addresses.lowerBound, width) & width.allOnes
    }

    public func write(_ address: UInt64, _ width: AccessWidth, _ value: UInt64) {
        guard let claim = claim(at: address) else { return }
        claim.device.write(address - claim.addresses.lowerBound, width, value & width.allOnes)
    }
}
