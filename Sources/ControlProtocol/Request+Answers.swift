/// What may be answered to what. A client believes nothing else.
extension Request {
    /// Whether a response is one to this request.
    func allows(_ response: Response) -> Bool {
        switch (self, response) {
        case (_, .failed): true
        case (.status, .machine), (.status, .end): true
        case (.start, .started): true
        case (.stop, .stopping), (.stop, .ended), (.stop, .end): true
        case (.wait, .ended): true
        case (.console, .console): true
        // How it is then, and which one it was: a name may be another machine's by the time of the next request.
        case (.pause, .machine), (.unpause, .machine): true
        case (.describe, .description): true
        case (.disks(_, let command), .image), (.disks(_, let command), .end): command.isList
        case (.disks(_, let command), .done): !command.isList
        case (.insertDisc, .done), (.ejectDisc, .done): true
        case (.sendBreak, .done), (.load, .done), (.reload, .done), (.reset, .done), (.log, .done): true
        default: false
        }
    }

    /// Whether a response is the last one to this request.
    func isEnded(by response: Response) -> Bool {
        switch (self, response) {
        case (.status, .machine), (.stop, .stopping), (.stop, .ended), (.disks, .image): false
        // A machine that does not stop is an item of the list. What is refused as a whole has this as its only answer,
        // and the caller knows: nothing came before it.
        case (.stop(_, _, waits: true), .failed(.timeout, _)): false
        default: true
        }
    }

    /// Seconds within which an answer comes; `nil` when it takes as long as a machine runs.
    var patience: Int? {
        switch self {
        case .wait, .stop(_, _, waits: true): nil
        // The daemon itself gives a machine two minutes to start.
        case .start: 150
        // Files are read, switches made, machines ended.
        case .load, .reload, .reset, .stop: 60
        case .pause, .unpause, .console, .sendBreak, .insertDisc, .ejectDisc: 30
        // All of a large disk's tables are read and written anew, perhaps those of others before it.
        case .disks: 600
        case .status, .describe, .log: 15
        }
    }
}
