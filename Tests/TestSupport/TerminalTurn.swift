package import Testing

/// Tests that make a terminal raw take turns, whichever target they are in: the guard that gives it back is one for the
/// process.
package struct TerminalTurn: TestTrait, SuiteTrait, TestScoping {
    package func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @concurrent @Sendable () async throws -> Void
    ) async throws {
        await Turns.shared.take()
        do {
            try await function()
        } catch {
            await Turns.shared.giveBack()
            throw error
        }
        await Turns.shared.giveBack()
    }

    private actor Turns {
        static let shared = Turns()
        private var isTaken = false
        private var waiting: [CheckedContinuation<Void, Never>] = []

        func take() async {
            guard isTaken else { return isTaken = true }
            await withCheckedContinuation { waiting.append($0) }
        }

        func giveBack() {
            guard waiting.isEmpty else { return waiting.removeFirst().resume() }
            isTaken = false
        }
    }
}

extension Trait where Self == TerminalTurn {
    package static var terminalTurn: TerminalTurn { TerminalTurn() }
}
