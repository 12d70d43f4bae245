/// Which machine is meant.
public enum MachineReference: Hashable, Sendable, WireValue, CustomStringConvertible {
    case id(UInt32)
    case name(String)

    /// A number is an id, anything else a name, as OpenBSD's vmctl reads it.
    public init(_ text: String) {
        // The parser of numbers would take a sign.
        let isNumber = !text.isEmpty && text.utf8.allSatisfy { $0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9") }
        if isNumber, let id = UInt32(text) { self = .id(id) } else { self = .name(text) }
    }

    public var description: String {
        switch self {
        case .id(let id): "\(id)"
        case .name(let name): name
        }
    }

    public func write(to writer: inout MessageWriter) {
        switch self {
        case .id(let id):
            writer.put(0 as UInt8)
            writer.put(id)
        case .name(let name):
            writer.put(1 as UInt8)
            writer.put(name)
        }
    }

    public init(from reader: inout MessageReader) throws(MalformedMessage) {
        let form: UInt8 = try reader.number()
        switch form {
        case 0: self = .id(try reader.number())
        case 1: self = .name(try reader.string())
        default: throw MalformedMessage("unknown form \(form) of a machine's name")
        }
    }
}
