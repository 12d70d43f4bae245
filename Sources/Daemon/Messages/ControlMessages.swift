import ControlProtocol

/// What control says to the parent. Clients are numbers that are never used again.
enum ControlReport: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }

    /// Somebody connected. Their socket comes along, so that the parent asks the kernel who it is and need not believe
    /// control.
    case connected(client: UInt32)
    /// With the request's descriptors.
    case request(client: UInt32, Request)
    case gone(client: UInt32)
    case log(String)
    case probe(String)

    var kind: UInt16 {
        switch self {
        case .connected: 1
        case .request: 2
        case .gone: 3
        case .log: 4
        case .probe: 5
        }
    }

    var descriptorCount: Int {
        switch self {
        case .connected: 1
        case .request(_, let request): request.descriptorCount
        case .gone, .log, .probe: 0
        }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .connected(let client), .gone(let client): writer.put(client)
        case .request(let client, let request):
            writer.put(client)
            writer.put(request.kind)
            request.writeFields(to: &writer)
        case .log(let text), .probe(let text): writer.putLine(text)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .connected(client: try reader.number())
        case 2: self = .request(client: try reader.number(), try Request(kind: try reader.number(), from: &reader))
        case 3: self = .gone(client: try reader.number())
        case 4: self = .log(try reader.line())
        case 5: self = .probe(try reader.line())
        default: throw MalformedMessage("unknown report \(kind)")
        }
    }
}

/// What the parent says to control.
enum ControlCommand: Message, Hashable {
    static var longestPacket: Int { innerPacketByteCount }

    /// With the answer's descriptors. A client that is gone by now gets nothing.
    case answer(client: UInt32, Response)
    /// Nothing more is coming for the request, and the connection may ask again.
    case finished(client: UInt32)

    var kind: UInt16 {
        switch self {
        case .answer: 1
        case .finished: 2
        }
    }

    var descriptorCount: Int {
        if case .answer(_, let response) = self { response.descriptorCount } else { 0 }
    }

    func writeFields(to writer: inout MessageWriter) {
        switch self {
        case .answer(let client, let response):
            writer.put(client)
            writer.put(response.kind)
            response.writeFields(to: &writer)
        case .finished(let client): writer.put(client)
        }
    }

    init(kind: UInt16, from reader: inout MessageReader) throws(MalformedMessage) {
        switch kind {
        case 1: self = .answer(client: try reader.number(), try Response(kind: try reader.number(), from: &reader))
        case 2: self = .finished(client: try reader.number())
        default: throw MalformedMessage("unknown command \(kind)")
        }
    }
}
