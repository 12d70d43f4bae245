import Glibc
import Linux
import VmctlCommands

// A program's first moments: descriptors 0 to 2 must exist before any other is opened, and the first reading of the
// time-stamp counter is worth more the earlier it is.
TimeStampCounter.start()
StandardStreams.ensureOpen()
StandardStreams.ignoreBrokenPipes()
exit(Program.run(Array(CommandLine.arguments.dropFirst())))
