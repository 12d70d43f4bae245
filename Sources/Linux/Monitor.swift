import CLinux
import Glibc

/// A value behind a lock, with a condition to wait for: what `Mutex` has no counterpart for.
///
/// `@unchecked Sendable`: `state` comes in as `sending` and is touched only with the mutex held; the pthread objects
/// live at fixed addresses until deinit, and are made for any thread.
public final class Monitor<State>: @unchecked Sendable {
    private var state: State
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    public init(_ initial: sending State) {
        state = initial
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
        condition = .allocate(capacity: 1)
        condition.initialize(to: pthread_cond_t())
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Runs `body` with the lock held.
    public func withLock<Result>(_ body: (inout State) -> Result) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body(&state)
    }

    /// Sleeps while `condition` holds, then runs `body`, all under the lock.
    /// - Parameter deadline: nanoseconds of `CLOCK_MONOTONIC` after which it stops waiting.
    public func withLock<Result>(
        waitingWhile isToWait: (State) -> Bool, until deadline: UInt64? = nil, _ body: (inout State) -> Result
    ) -> Result {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while isToWait(state) {
            if let deadline {
                var time = timespec(nanoseconds: deadline)
                if pthread_cond_timedwait(condition, mutex, &time) == ETIMEDOUT { break }
            } else {
                pthread_cond_wait(condition, mutex)
            }
        }
        return body(&state)
    }

    /// Wakes all who wait, to look at their condition again.
    public func broadcast() { pthread_cond_broadcast(condition) }
}
