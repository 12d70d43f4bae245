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

    /// - Precondition: claims do not overlap and are at most 255: the machine's own wiring.
    public init(_ claims: [Claim]) {
        precondition(claims.count < 0xFF)
        var owner = [UInt8](repeating: 0xFF, count: 0x10000)
        for (index, claim) in claims.enumerated() {
            for port in claim.ports {
                precondition(owner[Int(port)] == 0xFF, "two devices claim port \(port)")
                owner[Int(port)] = UInt8(index)
            }
        }
        self.claims = claims
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

    /// - Precondition: claims do not overlap.
    public init(_ claims: [Claim]) {
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
        guard low < claims.count, claims[low].addresses.contains(address) else { return nil }
        return claims[low]
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
