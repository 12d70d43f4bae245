import ArgumentParser
import Daemon
import Glibc
import Linux

// Before any descriptor is opened, and before anything else of a role's process, which is to hold as little as it can.
TimeStampCounter.start()
StandardStreams.ensureOpen()
StandardStreams.ignoreBrokenPipes()
if let status = RoleProcess.run() { exit(status) }
exit(Vmd.run())
