import Devices
import Testing
import VMM

@Suite("Virtio entropy device") struct VirtioEntropyTests {
    @Test(arguments: VirtioDriver.Interface.allCases)
    func `gives random bytes, at most 64 KB a request`(interface: VirtioDriver.Interface) throws {
        let bench = try VirtioBench(VirtioEntropy.profile)
        let function = VirtioPCIFunction(bench.transport, VirtioEntropy(bench.transport))
        let driver = VirtioDriver(function, bench.memory, interface)
        driver.start()
        driver.send([.into(0x8000, 64), .into(0x9000, 64)])
        #expect(driver.takeUsed()?.byteCount == 128)
        let (first, second) = (bench.memory.read(0x8000, count: 64), bench.memory.read(0x9000, count: 64))
        #expect(first != second)
        #expect(first != [UInt8](repeating: 0, count: 64))
        driver.send([.into(0x20_0000, 0x10_0000)])
        #expect(driver.takeUsed()?.byteCount == 0x1_0000)
        #expect(bench.memory.read(0x20_FFF0, count: 16) != [UInt8](repeating: 0, count: 16))
        #expect(bench.memory.read(0x21_0000, count: 64) == [UInt8](repeating: 0, count: 64))
        // Something to read and nothing to write is a request for nothing.
        driver.send([.out(0x8000, 64)])
        #expect(driver.takeUsed()?.byteCount == 0)
    }
}
