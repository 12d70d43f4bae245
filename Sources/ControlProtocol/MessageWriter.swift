/// Puts values into the bytes of one message: little-endian numbers, strings and lists with their counts in front.
///
/// What is too long for its count is an error of the sender, found before anything is sent (`isTooLong`).
public struct MessageWriter {
    public private(set) var bytes: [UInt8] = []
    /// Something did not fit its count; the message must not be sent.
    public private(set) var isTooLong = false

    public init() {}

    public mutating func put<Number: FixedWidthInteger & UnsignedInteger>(_ value: Number) {
        for index in 0..<Number.bitWidth / 8 { bytes.append(UInt8(truncatingIfNeeded: value >> Number(index * 8))) }
    }

    public mutating func put(_ value: Bool) { bytes.append(value ? 1 : 0) }

    public mutating func put(_ value: String) {
        let utf8 = value.utf8
        putCount(utf8.count)
        bytes.append(contentsOf: utf8)
    }

    public mutating func put<Value: WireValue>(_ value: Value?) {
        put(value != nil)
        if let value { value.write(to: &self) }
    }

    public mutating func put<Value: WireValue>(_ values: [Value]) {
        putCount(values.count)
        for value in values { value.write(to: &self) }
    }

    private mutating func putCount(_ count: Int) {
        if count > Int(UInt16.max) { isTooLong = true }
        put(UInt16(truncatingIfNeeded: count))
    }
}

/// A value that messages are made of.
public protocol WireValue {
    func write(to writer: inout MessageWriter)
    init(from reader: inout MessageReader) throws(MalformedMessage)
}

extension WireValue where Self: FixedWidthInteger & UnsignedInteger {
    public func write(to writer: inout MessageWriter) { writer.put(self) }
    public init(from reader: inout MessageReader) throws(MalformedMessage) { self = try reader.number() }
}

extension UInt8: WireValue {}
extension UInt32: WireValue {}
extension UInt64: WireValue {}

extension Bool: WireValue {
    public func write(to writer: inout MessageWriter) { writer.put(self) }
    public init(from reader: inout MessageReader) throws(MalformedMessage) { self = try reader.bool() }
}

extension String: WireValue {
    public func write(to writer: inout MessageWriter) { writer.put(self) }
    public init(from reader: inout MessageReader) throws(MalformedMessage) { self = try reader.string() }
}

/// Enumerations of fixed numbers.
extension WireValue where Self: RawRepresentable, RawValue == UInt8 {
    public func write(to writer: inout MessageWriter) { writer.put(rawValue) }
    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        let number: UInt8 = try reader.number()
        guard let value = Self(rawValue: number) else { throw MalformedMessage("unknown \(Self.self) \(number)") }
        self = value
    }
}
