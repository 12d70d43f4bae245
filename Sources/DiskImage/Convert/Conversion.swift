import Linux
import Synchronization

/// Makes a new image with what another disk holds.
///
/// Several threads each take the next piece of the disk, ask the source what of it is zeros, read the rest, look for zeros in
/// it, and write what is left. Each has one buffer: memory is bounded whatever the disk's size.
public struct Conversion: Sendable {
    public enum Target: Hashable, Sendable {
        case raw
        /// Its size is the disk's.
        case qcow2(QCOW2Options, isCompressed: Bool)
        case vmdk(isStreamOptimized: Bool)

        public var format: ImageFormat {
            switch self {
            case .raw: .raw
            case .qcow2: .qcow2
            case .vmdk: .vmdk
            }
        }
    }

    public var target: Target
    /// Of the new disk; at least the source's.
    public var byteCount: UInt64
    /// Told how far it is, in bytes of the disk, by any thread.
    public var progress: @Sendable (_ done: UInt64, _ total: UInt64) -> Void = { _, _ in }
    /// Asked again and again: the conversion ends soon after it says yes.
    public var isCancelled: @Sendable () -> Bool = { false }
    /// At most; `nil` for what suits the target and the host.
    public var threadCount: Int?
    
    public init(_ target: Target, byteCount: UInt64) {
        self.target = target
        self.byteCount = byteCount
    }

    /// Writes the image to an empty file.
    /// - Throws: `refused` when it was cancelled; what is in the file then is of no use.
    public func run(from source: any BlockImage, into file: ImageFile, fileName: String) throws(ImageError) {
        guard byteCount >= source.byteCount else {
            throw ImageError(.refused, file.name, "size cannot be smaller than input disk size, \(source.byteCount) bytes")
        }
        let sink = try makeSink(file, fileName)
        let work = ConversionWork(self, source, sink, file.name)
        var threads: [PosixThread] = []
        // Copies wait for one file's lock: two keep it busy. Compression takes what it gets, on a busy host too.
        let suitable = sink.compresses ? max(4, ProcessorCount.usable) : min(2, ProcessorCount.usable)
        let count = max(1, min(threadCount ?? suitable, 16, work.pieceCount))
        for _ in 1..<count {
            // The others do it without this one.
            if let thread = try? PosixThread("convert", work.run) { threads.append(thread) }
        }
        work.run()
        for thread in threads { thread.join() }
        if let failure = work.failure { throw failure }
        try sink.finish()
    }

    private func makeSink(_ file: ImageFile, _ fileName: String) throws(ImageError) -> any ConversionSink {
        switch target {
        case .raw:
            try RawImage.create(file, byteCount: byteCount)
            return DiskSink(try RawImage(file), block: 4096)
        case .qcow2(var options, let isCompressed):
            options.byteCount = byteCount
            try QCOW2Image.create(file, options)
            let image = try QCOW2Image(file)
            return isCompressed
                ? CompressedSink(image, cluster: Int(options.clusterSize))
                : DiskSink(image, block: Int(max(4096, min(options.clusterSize, 1 << 16)))) { () throws(ImageError) in try image.close() }
        case .vmdk(false):
            try VMDKImage.create(file, byteCount: byteCount, fileName: fileName)
            let image = try VMDKImage(file)
            return DiskSink(image, block: image.grainByteCount)
        case .vmdk(true): return StreamSink(try VMDKStreamWriter(file, byteCount: byteCount, fileName: fileName))
        }
    }
}

/// What the threads of a conversion share.
private final class ConversionWork: Sendable {
    private struct State {
        var next = 0
        var done: UInt64 = 0
        var failure: ImageError?
    }

    private let conversion: Conversion
    private let source: any BlockImage
    private let sink: any ConversionSink
    private let name: String
    private let state = Mutex(State())
    private let pieceByteCount: UInt64
    let pieceCount: Int

    init(_ conversion: Conversion, _ source: any BlockImage, _ sink: any ConversionSink, _ name: String) {
        self.conversion = conversion
        self.source = source
        self.sink = sink
        self.name = name
        pieceByteCount = UInt64(sink.pieceByteCount)
        pieceCount = Int(clamping: (source.byteCount + pieceByteCount - 1) / pieceByteCount)
    }

    var failure: ImageError? { state.withLock { $0.failure } }

    /// One thread's part.
    @Sendable func run() {
        let buffer = HeapBytes(count: Int(min(pieceByteCount, source.byteCount)))
        while true {
            let piece = state.withLock { state -> Int? in
                guard state.failure == nil, state.next < pieceCount else { return nil }
                defer { state.next += 1 }
                return state.next
            }
            guard let piece else { return }
            let offset = UInt64(piece) * pieceByteCount
            let count = min(pieceByteCount, source.byteCount - offset)
            do throws(ImageError) {
                if conversion.isCancelled() { throw ImageError(.refused, name, "was cancelled") }
                let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<Int(count)])
                let hasData = try fill(bytes, offset)
                try sink.put(hasData ? UnsafeRawBufferPointer(bytes) : nil, at: offset, piece: piece)
            } catch {
                state.withLock { $0.failure = $0.failure ?? error }
                sink.abandon()
                return
            }
            state.withLock {
                $0.done += count
                conversion.progress($0.done, source.byteCount)
            }
        }
    }

    /// Reads a piece.
    /// - Returns: whether it may hold anything but zeros.
    private func fill(_ bytes: UnsafeMutableRawBufferPointer, _ offset: UInt64) throws(ImageError) -> Bool {
        var done = 0
        var hasData = false
        // Zeros at the beginning are written down only when data follows.
        var pendingZeros = 0
        while done < bytes.count {
            let (isZero, alike) = try SourceMap.next(source, at: offset + UInt64(done), count: UInt64(bytes.count - done))
            let count = Int(min(alike, UInt64(bytes.count - done)))
            if isZero {
                pendingZeros += count
            } else {
                if pendingZeros > 0 { clear(bytes, done - pendingZeros, pendingZeros) }
                pendingZeros = 0
                hasData = true
                try source.read(into: UnsafeMutableRawBufferPointer(rebasing: bytes[done..<done + count]), at: offset + UInt64(done))
            }
            done += count
        }
        if hasData, pendingZeros > 0 { clear(bytes, done - pendingZeros, pendingZeros) }
        return hasData
    }

    private func clear(_ bytes: UnsafeMutableRawBufferPointer, _ start: Int, _ count: Int) {
        UnsafeMutableRawBufferPointer(rebasing: bytes[start..<start + count]).initializeMemory(as: UInt8.self, repeating: 0)
    }
}

extension Conversion.Target {
    /// Makes an empty file an image of zeros, or of what its base holds.
    /// - Parameter byteCount: for qcow2 the options' counts when there is one.
    public func makeEmpty(_ file: ImageFile, byteCount: UInt64, fileName: String) throws(ImageError) {
        switch self {
        case .raw: try RawImage.create(file, byteCount: byteCount)
        case .qcow2(var options, _):
            if options.byteCount == 0 { options.byteCount = byteCount }
            try QCOW2Image.create(file, options)
        case .vmdk(false): try VMDKImage.create(file, byteCount: byteCount, fileName: fileName)
        case .vmdk(true): try VMDKStreamWriter(file, byteCount: byteCount, fileName: fileName).finish()
        }
    }
}
