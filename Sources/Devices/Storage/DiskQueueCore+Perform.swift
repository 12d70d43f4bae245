import DiskImage
import Linux

extension DiskQueueCore {
    /// Does what is left of a transfer, and waits for the disk. On the queue's threads.
    func perform(_ index: Int) -> DiskResult {
        do {
            switch transfers[index].request.operation {
            case .read:
                try inParts(index) { (buffers, offset) throws(ImageError) in try image.read(into: buffers, at: offset) }
            case .write:
                try inParts(index) { (buffers, offset) throws(ImageError) in try image.write(buffers, at: offset) }
            case .flush: try image.flush()
            case .discard:
                try image.discard(at: transfers[index].request.offset, count: transfers[index].request.byteCount)
            case .writeZeroes: try writeZeroes(index, mayDiscard: false)
            case .writeZeroesDiscarding: try writeZeroes(index, mayDiscard: true)
            }
            return .done
        } catch {
            return DiskResult(error.kind)
        }
    }

    private func writeZeroes(_ index: Int, mayDiscard: Bool) throws(ImageError) {
        let request = transfers[index].request
        try image.writeZeroes(at: request.offset, count: request.byteCount, mayDiscard: mayDiscard)
    }

    private func inParts(_ index: Int, _ body: (IOBuffers, UInt64) throws(ImageError) -> Void) throws(ImageError) {
        repeat {
            let buffers = transfers[index].nextBuffers(transfers[index].left)
            try body(buffers, transfers[index].offset)
            transfers[index].advance(by: buffers.byteCount)
            // Nothing left to take although something is left: the request has less memory than it says.
            if buffers.byteCount == 0, transfers[index].left > 0 {
                throw ImageError(.outOfRange, "", "a request without memory")
            }
        } while transfers[index].left > 0
    }
}

extension DiskResult {
    init(_ kind: ImageError.Kind) {
        switch kind {
        case .outOfRange: self = .outOfRange
        case .readOnly: self = .readOnly
        case .unsupported, .refused: self = .unsupported
        case .system, .inUse, .malformed: self = .failed
        }
    }
}
