import Synchronization

/// Brings what other threads have to say to the thread of an event loop.
public final class Mailbox<Message: Sendable>: Sendable {
    private let event: EventDescriptor
    private let messages = Mutex<[Message]>([])

    public init() throws(SystemError) { event = try EventDescriptor() }

    /// Readable while messages wait.
    public var descriptor: CInt { event.raw }

    /// Any thread.
    public func post(_ message: Message) {
        messages.withLock { $0.append(message) }
        event.signal()
    }

    /// Takes all that wait, oldest first.
    public func takeAll() -> [Message] {
        event.clear()
        return messages.withLock { messages in
            defer { messages = [] }
            return messages
        }
    }
}
