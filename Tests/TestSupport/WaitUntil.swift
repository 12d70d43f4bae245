import Glibc

/// Looks again and again until something is so.
///
/// A loop without an end would hang the whole run when what it waits for does not come: a time limit cannot end a test
/// that blocks its thread.
/// - Returns: `false` when it was not so within the time.
package func waitUntil(seconds: Int = 30, _ isSo: () throws -> Bool) rethrows -> Bool {
    let end = ContinuousClock.now + .seconds(seconds)
    while try !isSo() {
        guard ContinuousClock.now < end else { return false }
        usleep(50)
    }
    return true
}
