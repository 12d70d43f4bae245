import Glibc
import Testing

extension GuestTests {
    /// Machines that boot by the host's SeaBIOS, as a user sees them.
    struct Firmware {
        @Test func `without a kernel it boots by firmware, and says what that does`() throws {
            let guest = try GuestProcess(["-v", "run", "-m", "16M"] + Paths.engine, input: .nothing)
            _ = try guest.wait(for: "No bootable device.")
            guest.signal(SIGTERM)
            #expect(try guest.status() == 143)
            #expect(guest.errorText.contains("vmctl: firmware: SeaBIOS (version "))
            #expect(guest.text.contains("SeaBIOS (version "))
            #expect(!guest.text.contains("vmctl: "))
        }

        /// What an embedded developer does: an image of his own. mov $0x2a, %al; out %al, $0xf4; jmp . at the reset vector.
        @Test func `any image with an instruction at the reset vector is firmware`() throws {
            let scratch = try Scratch()
            let image = try scratch.file("image", [0xB0, 0x2A, 0xE6, 0xF4, 0xEB, 0xFE] + Array(repeating: 0x90, count: 10))
            let guest = try GuestProcess(["run", "-m", "16M", "-b", image, "--debug-exit", "0xf4"] + Paths.engine, input: .nothing)
            #expect(try guest.status() == 0x55)
        }
    }
}
