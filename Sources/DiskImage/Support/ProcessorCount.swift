import Glibc

enum ProcessorCount {
    /// What this process may run on at once, as far as the system says.
    static var usable: Int { max(1, sysconf(CInt(_SC_NPROCESSORS_ONLN))) }
}
