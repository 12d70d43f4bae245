/// How much a machine says: what vmm holds against it, and when it reads on.
///
/// What it says to a request on its disks takes its turn like the rest, but may fill windows: who asks again and again is no fault of
/// the machine's.
struct ReportBudget {
    /// A machine may say so much in a tenth of a second; then it waits,
    static let reportsPerWindow = 64
    static let windowNanoseconds: UInt64 = 100_000_000
    /// and who does so unasked for 5 s on end is not well.
    static let mostFullWindows = 50

    /// In the window that runs.
    private(set) var reportCount = 0
    /// Of those, the ones that answer no request on disks.
    private var unaskedCount = 0
    /// Windows in a row that it filled unasked.
    private var fullWindows = 0
    /// Requests on its disks that it was told of and has not answered, by client, with how many images each may still name. The parent
    /// bounds their number.
    private var requests: [UInt32: Int] = [:]

    /// It is read again in the next window.
    var isSpent: Bool { reportCount >= Self.reportsPerWindow }
    /// It is not listened to any more.
    var isFlood: Bool { fullWindows > Self.mostFullWindows }

    mutating func note(_ command: MachineCommand) {
        switch command {
        case .disks(let client, _), .insertDisc(let client, _, _), .ejectDisc(let client, _): requests[client] = MachineReport.mostImages
        default: break
        }
    }

    mutating func note(_ report: MachineReport) {
        reportCount += 1
        guard !isAnswer(report) else { return }
        unaskedCount += 1
        if unaskedCount == Self.reportsPerWindow { fullWindows += 1 }
    }

    private mutating func isAnswer(_ report: MachineReport) -> Bool {
        switch report {
        case .image(let client, _):
            guard let left = requests[client], left > 0 else { return false }
            requests[client] = left - 1
            return true
        case .diskDone(let client), .diskRefused(let client, _, _): return requests.removeValue(forKey: client) != nil
        default: return false
        }
    }

    mutating func endWindow() {
        if unaskedCount < Self.reportsPerWindow { fullWindows = 0 }
        (reportCount, unaskedCount) = (0, 0)
    }
}
