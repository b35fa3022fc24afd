//! What a command may use.

/// A resource that a process may have a limited share of, for
/// [`Command::rlimit`](super::Command::rlimit). Has no twin in std. See `setrlimit(2)` of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// CPU time in seconds. Beyond it is `SIGXCPU`, at the hard limit `SIGKILL`.
    CpuTime = 0,
    /// Size of a file it writes, in bytes. Beyond it is `SIGXFSZ`.
    FileSize = 1,
    /// Its data segment, in bytes.
    Data = 2,
    /// Its main thread's stack, in bytes.
    Stack = 3,
    /// A core dump, in bytes; 0 for none.
    CoreSize = 4,
    /// Resident memory in bytes. Today's Linux does not heed it.
    ResidentSet = 5,
    /// Processes and threads of its user. Root is not bound by it.
    Processes = 6,
    /// The highest descriptor, plus one.
    OpenFiles = 7,
    /// Memory locked to RAM, in bytes.
    LockedMemory = 8,
    /// Its whole address space, in bytes.
    AddressSpace = 9,
    /// Locks on files. Today's Linux does not heed it.
    FileLocks = 10,
    /// Signals that wait for processes of its user.
    PendingSignals = 11,
    /// POSIX message queues of its user, in bytes.
    MessageQueues = 12,
    /// How far it may lower its nice value: to 20 minus this.
    Nice = 13,
    /// The highest real-time priority it may have.
    RealTimePriority = 14,
    /// Real-time CPU time without a system call that waits, in microseconds.
    RealTimeTime = 15,
}

impl Resource {
    /// The limit that is none.
    pub const UNLIMITED: u64 = u64::MAX;
}
