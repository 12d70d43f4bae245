import Devices
import Synchronization
import VMM

/// Shows on the serial console what a guest writes to the screen of a PC by itself, at 0xB8000.
///
/// SeaBIOS sends what programs print by its services (int 10h) to the serial port, and leaves the text page alone; whoever
/// writes to the page instead would be seen by nobody. The page is RAM, so that writing costs nothing: it is looked at 10
/// times a second while it changes, once a second for 5 minutes more, and then not until a program writes to a register
/// of the VGA, which an idle guest does not do.
///
/// Nothing is shown twice: a row that has been sent to the serial port lately, as by a kernel that has both as consoles, is
/// left out, and rows wait for one look before they are shown, since the port may come second. A system that takes input from the
/// port by interrupt has it as a console of its own: from then on its screen, with a login perhaps, is left alone. Output waits for a slow
/// terminal on the timer's thread: such a guest's clocks wait as well, as it would itself.
final class ScreenMirror: SerialTerminal, Sendable {
    static let textPage: UInt64 = 0xB8000
    /// Of the BIOS's data area: 0 without a video BIOS, 3 with SeaBIOS's services on the serial port.
    private static let videoMode: UInt64 = 0x449
    private static let pageCells = 0x4000
    static let period: UInt64 = 100_000_000
    private static let slowPeriod: UInt64 = 1_000_000_000
    private static let busyNanoseconds: UInt64 = 10_000_000_000
    private static let watchedNanoseconds: UInt64 = 300_000_000_000
    private static let recentByteCount = 8192

    private struct State {
        var screen = TextScreen()
        /// What the last look saw, and the cursor's cell.
        var page = TextScreen.normalized(Array(repeating: 0, count: TextScreen.cellCount))
        var cursor = 0
        var lastChange: UInt64 = 0
        var timer: (any DeviceTimer)?
        var isArmed = false
    }

    private let state = Mutex(State())
    /// What the guest sent to the port lately, and what it is to be compared by.
    private let recent = Mutex<[UInt8]>([])
    /// Kept outside the lock: a guest may write registers in a loop.
    private let isWatching = Atomic<Bool>(false)
    private let terminal: any SerialTerminal
    private let memory: GuestMemory
    private let clock: any Clock
    private let vga = Mutex<VGAPorts?>(nil)
    private let isPortDriven = Mutex<@Sendable () -> Bool>({ false })

    /// - Parameter terminal: the other end of the serial port.
    init(_ terminal: any SerialTerminal, memory: GuestMemory, clock: any Clock) {
        self.terminal = terminal
        self.memory = memory
        self.clock = clock
        let timer = clock.makeTimer { [weak self] in self?.look() }
        state.withLock { $0.timer = timer }
    }

    /// - Parameter isPortDriven: whether the guest's system has the serial port as a console.
    func connect(_ ports: VGAPorts, isPortDriven: @escaping @Sendable () -> Bool) {
        vga.withLock { $0 = ports }
        self.isPortDriven.withLock { $0 = isPortDriven }
    }

    // MARK: The serial port's output

    func send(_ byte: UInt8) {
        if byte >= 0x20 {
            recent.withLock { recent in
                if recent.count >= Self.recentByteCount { recent.removeFirst(Self.recentByteCount / 2) }
                recent.append(byte)
            }
        }
        terminal.send(byte)
    }

    func roomAvailable() { terminal.roomAvailable() }

    // MARK: The screen

    /// The machine starts, or starts again: its screen is empty.
    func restart() {
        recent.withLock { $0.removeAll(keepingCapacity: true) }
        state.withLock { state in
            state.screen = TextScreen()
            state.page = TextScreen.normalized(Array(repeating: 0, count: TextScreen.cellCount))
            state.cursor = 0
        }
        isWatching.store(false, ordering: .relaxed)
        watch()
    }

    /// Somebody uses the screen. Any thread.
    func watch() {
        guard !isWatching.exchange(true, ordering: .relaxed) else { return }
        state.withLock { state in
            state.lastChange = clock.now()
            state.timer?.arm(at: clock.now() &+ Self.period)
        }
    }

    /// The characters shown now. The page wraps at its end, as the hardware's does.
    private func readPage() -> (characters: [UInt8], cursor: Int)? {
        let registers = vga.withLock { $0 }?.save() ?? VGARegisters()
        // An adapter that neither a BIOS nor a program has set up shows nothing. U-Boot leaves other things there.
        guard registers != VGARegisters() || memory.load(Self.videoMode, as: UInt8.self) != 0 else {
            return (TextScreen.normalized(Array(repeating: 0, count: TextScreen.cellCount)), 0)
        }
        guard let cells = memory.read(Self.textPage, count: Self.pageCells * 2) else { return nil }
        let characters = (0..<TextScreen.cellCount).map { cells[(registers.start + $0) % Self.pageCells * 2] }
        return (TextScreen.normalized(characters), registers.cursor - registers.start)
    }

    private func look() {
        let output: [UInt8] = state.withLock { state in
            // Not armed again, and `isWatching` stays, so that writes to registers do not call for another look.
            if isPortDriven.withLock({ $0 })() { return [] }
            guard let (page, cursor) = readPage() else { return [] }
            let now = clock.now()
            // What the look before saw is shown now.
            let known = recent.withLock { $0 }
            let output = state.screen.show(state.page, cursor: state.cursor) { known.holds($0) }
            if page != state.page { state.lastChange = now }
            state.page = page
            state.cursor = cursor
            let quiet = now &- state.lastChange
            if quiet < Self.watchedNanoseconds {
                state.timer?.arm(at: now &+ (quiet < Self.busyNanoseconds ? Self.period : Self.slowPeriod))
            } else {
                isWatching.store(false, ordering: .relaxed)
            }
            return output
        }
        for byte in output { terminal.send(byte) }
    }
}
