/// What a device keeps of each chain in flight, by tag: allocated once.
///
/// SAFETY: indices are checked. A slot has one holder at a time, who hands it on with the request that it belongs to.
/// `@unchecked Sendable` for that reason; the pointer never changes.
@safe final class VirtioSlots<Record: Sendable>: @unchecked Sendable {
    private let records: UnsafeMutablePointer<Record?>
    let count: Int

    init(count: Int) {
        self.count = count
        unsafe records = .allocate(capacity: count)
        unsafe records.initialize(repeating: nil, count: count)
    }

    deinit {
        unsafe records.deinitialize(count: count)
        unsafe records.deallocate()
    }

    subscript(_ tag: UInt32) -> Record? {
        get { Int(tag) < count ? unsafe records[Int(tag)] : nil }
        set {
            precondition(Int(tag) < count)
            unsafe records[Int(tag)] = newValue
        }
    }
}
