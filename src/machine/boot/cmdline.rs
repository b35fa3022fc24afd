//! The kernel's command line.
//!
//! The defaults make boot short on an emulated processor: no self-tests, no mitigations against
//! neighbours that a single-tenant guest does not have, no zeroing of every allocation, no probing
//! for hardware that is not there. They come first, so the caller's own arguments override them.

use super::BootError;

/// What Linux on x86-64 takes, in bytes, with the closing NUL.
pub const MAX_LEN: usize = 2048;

/// Where the kernel's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// The 16550 UART at 0x3f8. Works from the first message on.
    Serial,
    /// The first port of virtio-console, with the UART as the early console, so that an early panic
    /// is seen too.
    Virtio,
}

/// What goes into a command line.
#[derive(Debug, Clone)]
pub struct CommandLine {
    /// Where messages go.
    pub console: Console,
    /// All kernel messages; else only warnings and worse.
    pub dmesg: bool,
    /// The frequency of the time-stamp counter in kHz, for a processor whose guest cannot learn it
    /// another way: with these ACPI tables there is no timer to calibrate against.
    pub tsc_khz: Option<u64>,
    /// The processor shows features that it has only for programs, and emulates the kernel slowly.
    pub emulated: bool,
    /// Arguments of the caller, put last.
    pub extra: Vec<String>,
}

const BASE: &[&str] = &[
    "rdinit=/init",
    // A panic or reboot must end the machine at once, by the i8042 and else by a triple fault.
    "panic=-1",
    "reboot=k",
    "mitigations=off",
    "randomize_kstack_offset=off",
    "init_on_alloc=0",
    "no_timer_check",
    "tsc=reliable",
    "nowatchdog",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    // The jitter random source times the processor for 130 million instructions, and needs a real one.
    "initcall_blacklist=jent_mod_init",
    "rcupdate.rcu_expedited=1",
    "pci=off",
    "8250.nr_uarts=1",
    "audit=0",
    "apparmor=0",
    "numa=off",
    "kfence.sample_interval=0",
    "net.ifnames=0",
];

/// Features that the hypervisor shows though it cannot run a kernel with them, or that cost most when emulated (string
/// instructions byte by byte); and a timer that does not fall behind.
const EMULATED: &[&str] = &[
    "noxsave",
    "nopcid",
    "noinvpcid",
    "nofsgsbase",
    "clearcpuid=smap,smep,erms,fsrm",
    "highres=off",
    "nohz=off",
];

impl CommandLine {
    /// A quiet one on `console`.
    pub fn new(console: Console) -> Self {
        Self { console, dmesg: false, tsc_khz: None, emulated: false, extra: Vec::new() }
    }

    /// The text, without the closing NUL. Errors when it is longer than [`MAX_LEN`] or an argument
    /// has a byte that is not printable ASCII.
    pub fn build(&self) -> Result<String, BootError> {
        let refused = |e: linux_loader::cmdline::Error| BootError::CommandLine { reason: e.to_string() };
        let mut line = linux_loader::cmdline::Cmdline::new(MAX_LEN).map_err(refused)?;
        let early = "earlyprintk=serial,ttyS0,115200";
        let console: &[&str] = match self.console {
            Console::Serial => &[early, "console=ttyS0"],
            Console::Virtio => &[early, "console=hvc0"],
        };
        let level: &[&str] = if self.dmesg { &["loglevel=8"] } else { &["quiet"] };
        let tsc = self.tsc_khz.map(|khz| format!("tsc_early_khz={khz}"));
        let extra = self.extra.iter().map(String::as_str);
        let emulated = if self.emulated { EMULATED } else { &[] };
        for argument in console
            .iter()
            .chain(level)
            .chain(BASE)
            .chain(emulated)
            .copied()
            .chain(tsc.as_deref())
            .chain(extra)
        {
            line.insert_str(argument).map_err(refused)?;
        }
        let text = line.as_cstring().map_err(refused)?;
        text.into_string().map_err(|_| BootError::CommandLine { reason: "it is not ASCII".into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_arguments_come_last() {
        let mut line = CommandLine::new(Console::Serial);
        line.extra = vec!["panic=30".into(), "debug".into()];
        let text = line.build().unwrap();
        assert!(text.ends_with(" panic=30 debug"), "{text}");
        assert!(text.contains("console=ttyS0 quiet "), "{text}");
        line.dmesg = true;
        assert!(!line.build().unwrap().contains("quiet"));
        assert!(!line.build().unwrap().contains("noxsave"));
        line.emulated = true;
        assert!(line.build().unwrap().contains(" noxsave "));
        assert!(line.build().unwrap().ends_with(" panic=30 debug"));
    }

    #[test]
    fn too_long_and_unprintable_are_refused() {
        let mut line = CommandLine::new(Console::Virtio);
        let room = MAX_LEN - 1 - line.build().unwrap().len() - 1;
        line.extra = vec!["x".repeat(room)];
        assert_eq!(line.build().unwrap().len(), MAX_LEN - 1);
        line.extra = vec!["x".repeat(room + 1)];
        assert!(matches!(line.build(), Err(BootError::CommandLine { .. })));
        line.extra = vec!["a\0b".into()];
        assert!(matches!(line.build(), Err(BootError::CommandLine { .. })));
        line.extra = vec!["ü".into()];
        assert!(matches!(line.build(), Err(BootError::CommandLine { .. })));
    }
}
