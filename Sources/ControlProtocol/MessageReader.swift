/// A message that does not say what its kind must say. Its sender is cut off.
public struct MalformedMessage: Error, Hashable, Sendable, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }
}

/// Takes values out of the bytes of one message, none of which is believed.
public struct MessageReader {
    private let bytes: ArraySlice<UInt8>
    private var position: Int

    public init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    private mutating func take(_ count: Int) throws(MalformedMessage) -> ArraySlice<UInt8> {
        guard count <= bytes.endIndex - position else { throw MalformedMessage("message ends too early") }
        defer { position += count }
        return bytes[position..<position + count]
    }

    public mutating func number<Number: FixedWidthInteger & UnsignedInteger>() throws(MalformedMessage) -> Number {
        var value: Number = 0
        for (index, byte) in try take(Number.bitWidth / 8).enumerated() { value |= Number(byte) << Number(index * 8) }
        return value
    }

    public mutating func bool() throws(MalformedMessage) -> Bool {
        let byte: UInt8 = try number()
        guard byte < 2 else { throw MalformedMessage("\(byte) is neither yes nor no") }
        return byte == 1
    }

    /// UTF-8 without zero bytes, so that it is the same text for the kernel as for us.
    public mutating func string() throws(MalformedMessage) -> String {
        let count: UInt16 = try number()
        let utf8 = try take(Int(count))
        guard !utf8.contains(0), let text = String(validating: utf8, as: UTF8.self) else {
            throw MalformedMessage("text that is not UTF-8")
        }
        return text
    }

    public mutating func value<Value: WireValue>(_ type: Value.Type = Value.self) throws(MalformedMessage) -> Value {
        try Value(from: &self)
    }

    public mutating func optional<Value: WireValue>(
        _ type: Value.Type = Value.self
    ) throws(MalformedMessage) -> Value? {
        try bool() ? Value(from: &self) : nil
    }

    /// - Parameter limit: more than so many are not a message of ours.
    public mutating func list<Value: WireValue>(
        of type: Value.Type = Value.self, atMost limit: Int
    ) throws(MalformedMessage) -> [Value] {
        let count: UInt16 = try number()
        guard Int(count) <= limit else { throw MalformedMessage("\(count) values where \(limit) are the most") }
        var values: [Value] = []
        for _ in 0..<count { values.append(try Value(from: &self)) }
        return values
    }

    /// Nothing may follow.
    public func finish() throws(MalformedMessage) {
        guard position == bytes.endIndex else {
            throw MalformedMessage("\(bytes.endIndex - position) bytes too many")
        }
    }
}
