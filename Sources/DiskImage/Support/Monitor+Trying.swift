import Linux

extension Monitor {
    /// `withLock` for what can fail.
    /// - Parameter isToWait: sleeps while it holds.
    func trying<Value>(
        waitingWhile isToWait: (State) -> Bool = { _ in false }, _ body: (inout State) throws(ImageError) -> Value
    ) throws(ImageError) -> Value {
        try withLock(waitingWhile: isToWait) { state in
            Result { () throws(ImageError) in try body(&state) }
        }.get()
    }
}
