//! Whether a hypervisor can run a kernel: by running pieces of one, not by asking for its device.
//!
//! A throw-away machine of 2 MiB executes, one after the other, what kernels need and what hypervisors
//! without hardware under them fail at, and a loop against the clock. It takes a few milliseconds where
//! the guest runs on the processor, and less than 50 where it is emulated. The [`Verdict`] is kept for as
//! long as the process lives, and in a file of the user's cache for as long as the host is up.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::flat;
use super::{Exit, ExitIo, HypervisorError, Unavailable, VcpuSignal, Vm};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A write to this port ends a piece; 0 means that it found what it should.
const END: u16 = 0xf4;
/// Turns of the timed loop, two instructions each.
const TURNS: u32 = 12_000;
/// Fewer instructions a second than this are not the processor's own.
const NATIVE: u64 = 60_000_000;
/// A piece that takes longer will not end.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Verdict {
    /// Guests run on the processor.
    Native(Figures),
    /// The guest's kernel is emulated, slowly; only its programs run on the processor.
    Emulated(Figures),
    /// It cannot run a kernel.
    Broken(Figures),
}

/// The measurements behind a [`Verdict`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Figures {
    /// Instructions a second of a loop at privilege 0, 0 if it did not end.
    pub kernel_instructions_per_s: u64,
    /// What of a kernel does not work.
    pub refused: Vec<String>,
    /// What the probe took, in microseconds.
    pub took_us: u64,
}

impl Verdict {
    /// The measurements.
    pub fn figures(&self) -> &Figures {
        match self {
            Self::Native(figures) | Self::Emulated(figures) | Self::Broken(figures) => figures,
        }
    }

    /// Whether a stock kernel and its programs can run there at all, if need be with the software CPU executing what is
    /// refused or done wrong.
    pub fn runs_linux(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }

    /// Whether it needs [`VmOptions::traps`](super::VmOptions::traps) for that.
    pub fn wants_traps(&self) -> bool {
        let wrong = |piece: &String| [SYSTEM_CALLS, HIDING].contains(&piece.as_str());
        matches!(self, Self::Emulated(_)) && self.figures().refused.iter().any(wrong)
    }

    /// Whether a machine should run there by itself.
    pub fn is_native(&self) -> bool {
        matches!(self, Self::Native(_))
    }

    fn of(figures: Figures) -> Self {
        match figures.kernel_instructions_per_s {
            0 => Self::Broken(figures),
            rate if rate < NATIVE => Self::Emulated(figures),
            _ if figures.refused.is_empty() => Self::Native(figures),
            _ => Self::Broken(figures),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let figures = self.figures();
        let mut details = match figures.kernel_instructions_per_s {
            0 => "a loop in ring 0 does not end".to_owned(),
            rate if rate < 1_000_000_000 => format!("{} M instr/s", rate.div_ceil(1_000_000)),
            rate => format!("{:.1} G instr/s", rate as f64 / 1e9),
        };
        if !figures.refused.is_empty() {
            let _ = write!(details, ", {} not supported", figures.refused.join(", "));
        }
        match self {
            Self::Native(_) => write!(f, "ring 0 runs on the processor ({details})"),
            Self::Emulated(_) => write!(f, "ring 0 is emulated ({details})"),
            Self::Broken(_) => write!(f, "it cannot run a kernel ({details})"),
        }
    }
}

/// What a hypervisor may do wrong without an exit.
const SYSTEM_CALLS: &str = "system calls";
const HIDING: &str = "hiding CPU features";

/// A piece of a kernel: its name and its code.
struct Piece {
    name: &'static str,
    code: &'static [u8],
}

/// What works everywhere but where the guest's kernel is emulated, more or less.
const PIECES: [Piece; 7] = [
    Piece {
        name: "cmpxchg16b",
        // mov edi, 0x30000; xor eax, eax; xor edx, edx; mov ebx, 7; mov ecx, 9; lock cmpxchg16b [rdi];
        // setnz al; cmp qword [rdi], 7; setnz cl; or al, cl; out 0xf4, al
        code: &[
            0xbf, 0, 0, 3, 0, 0x31, 0xc0, 0x31, 0xd2, 0xbb, 7, 0, 0, 0, 0xb9, 9, 0, 0, 0, 0xf0, 0x48, 0x0f,
            0xc7, 0x0f, 0x0f, 0x95, 0xc0, 0x48, 0x83, 0x3f, 7, 0x0f, 0x95, 0xc1, 0x08, 0xc8, 0xe6, 0xf4,
        ],
    },
    Piece {
        name: "int3",
        // xor eax, eax; int3; xor al, 5; out 0xf4, al (the handler sets al to 5)
        code: &[0x31, 0xc0, 0xcc, 0x34, 5, 0xe6, 0xf4],
    },
    Piece {
        name: "page tables",
        // mov rax, [0x3008]; mov qword [0x3008], 0x87; invlpg [0x200000]; mov ecx, [0x200000 + CODE];
        // mov [0x3008], rax; invlpg [0x200000]; cmp ecx, [CODE]; setnz al; out 0xf4, al
        code: &[
            0x48, 0x8b, 0x04, 0x25, 8, 0x30, 0, 0, 0x48, 0xc7, 0x04, 0x25, 8, 0x30, 0, 0, 0x87, 0, 0, 0,
            0x0f, 1, 0x3c, 0x25, 0, 0, 0x20, 0, 0x8b, 0x0c, 0x25, 0, 0, 0x30, 0, 0x48, 0x89, 0x04, 0x25, 8,
            0x30, 0, 0, 0x0f, 1, 0x3c, 0x25, 0, 0, 0x20, 0, 0x3b, 0x0c, 0x25, 0, 0, 0x10, 0, 0x0f, 0x95,
            0xc0, 0xe6, 0xf4,
        ],
    },
    Piece {
        name: "swapgs",
        // mov ecx, 0xc0000102; mov eax, 0x1234; xor edx, edx; wrmsr; swapgs; mov ecx, 0xc0000101; rdmsr;
        // cmp eax, 0x1234; setnz al; swapgs; out 0xf4, al
        code: &[
            0xb9, 2, 1, 0, 0xc0, 0xb8, 0x34, 0x12, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 1, 0xf8, 0xb9, 1, 1,
            0, 0xc0, 0x0f, 0x32, 0x3d, 0x34, 0x12, 0, 0, 0x0f, 0x95, 0xc0, 0x0f, 1, 0xf8, 0xe6, 0xf4,
        ],
    },
    Piece {
        // XSAVE, bit 26, is in no model.
        name: HIDING,
        // mov eax, 1; xor ecx, ecx; cpuid; shr ecx, 26; and ecx, 1; mov eax, ecx; out 0xf4, al
        code: &[
            0xb8, 1, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2, 0xc1, 0xe9, 26, 0x83, 0xe1, 1, 0x89, 0xc8, 0xe6, 0xf4,
        ],
    },
    Piece {
        name: SYSTEM_CALLS,
        // mov ecx, STAR; xor eax, eax; mov edx, 0x100008; wrmsr; inc ecx; mov eax, k; xor edx, edx; wrmsr;
        // inc ecx; inc ecx; xor eax, eax; wrmsr; push 0x1b; push 0x1f000; push 2; push 0x23; push u; iretq;
        // u: syscall; k: swapgs; swapgs; xor eax, eax; out 0xf4, al (at privilege 3 that is a fault)
        code: &[
            0xb9, 0x81, 0, 0, 0xc0, 0x31, 0xc0, 0xba, 8, 0, 0x10, 0, 0xf, 0x30, 0xff, 0xc1, 0xb8, 0x35, 0,
            0x10, 0, 0x31, 0xd2, 0xf, 0x30, 0xff, 0xc1, 0xff, 0xc1, 0x31, 0xc0, 0xf, 0x30, 0x6a, 0x1b, 0x68,
            0, 0xf0, 1, 0, 0x6a, 2, 0x6a, 0x23, 0x68, 0x33, 0, 0x10, 0, 0x48, 0xcf, 0xf, 5, 0xf, 1, 0xf8,
            0xf, 1, 0xf8, 0x31, 0xc0, 0xe6, 0xf4,
        ],
    },
    Piece {
        name: "fxsave",
        // mov edi, 0x30000; fxsave64 [rdi]; fxrstor64 [rdi]; xor eax, eax; out 0xf4, al
        code: &[0xbf, 0, 0, 3, 0, 0x48, 0x0f, 0xae, 0x07, 0x48, 0x0f, 0xae, 0x0f, 0x31, 0xc0, 0xe6, 0xf4],
    },
];

/// mov ecx, TURNS; l: dec ecx; jnz l; xor eax, eax; out 0xf4, al
const LOOP: [u8; 13] = {
    let [a, b, c, d] = TURNS.to_le_bytes();
    [0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0x31, 0xc0, 0xe6, 0xf4]
};

/// What a piece said in the end.
struct Ears {
    signal: OnceLock<Arc<dyn VcpuSignal>>,
    heard: AtomicBool,
    wrong: AtomicBool,
}

impl ExitIo for Ears {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        if port == END {
            self.heard.store(true, Ordering::SeqCst);
            self.wrong.store(data != [0], Ordering::SeqCst);
            if let Some(signal) = self.signal.get() {
                signal.kick();
            }
        }
    }
    fn mmio_read(&self, _addr: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _addr: u64, _data: &[u8]) {}
}

/// Code of a vector's handler: that of the breakpoint answers, all others end the piece with an error.
fn handler(vector: u8) -> [u8; 16] {
    let mut code = [0x90; 16];
    match vector {
        // mov al, 5; iretq
        3 => code[..4].copy_from_slice(&[0xb0, 5, 0x48, 0xcf]),
        // mov al, 0xff; out 0xf4, al; jmp $
        _ => code[..6].copy_from_slice(&[0xb0, 0xff, 0xe6, 0xf4, 0xeb, 0xfe]),
    }
    code
}

/// Probes the machines that `make` makes.
pub(super) fn probe(
    make: impl FnOnce(Arc<GuestRam>, Arc<Clock>) -> Result<Box<dyn Vm>, HypervisorError>,
) -> Result<Verdict, HypervisorError> {
    let begin = Instant::now();
    let ram = GuestRam::new(2 << 20).map_err(|e| std::io::Error::other(e.to_string()))?;
    let clock = Arc::new(Clock::new());
    let vm = make(ram.clone(), clock.clone())?;
    let mut vcpu = vm.create_vcpu(0, None)?;
    let ears = Ears { signal: OnceLock::new(), heard: AtomicBool::new(false), wrong: AtomicBool::new(false) };
    let _ = ears.signal.set(vcpu.signal());
    clock.resume();
    vm.time_resumed();
    let mut run = |code: &[u8]| -> Option<Duration> {
        let ready = flat::lay_out(&ram, handler)
            .and_then(|()| ram.memory().write_slice(&[0; 64], GuestAddress(0x3_0000)))
            .and_then(|()| ram.memory().write_slice(code, GuestAddress(flat::CODE)));
        ready.ok()?;
        vcpu.set_state(&flat::entry()).ok()?;
        ears.heard.store(false, Ordering::SeqCst);
        let signal = vcpu.signal();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let guard = std::thread::Builder::new().name("cc-probe".into()).spawn(move || {
            // It hangs up when the piece has ended.
            if wait.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                signal.kick();
            }
        });
        let begin = Instant::now();
        let left = guard.is_ok().then(|| vcpu.run(&ears));
        let took = begin.elapsed();
        drop(done);
        let _ = guard.map(std::thread::JoinHandle::join);
        let heard = ears.heard.load(Ordering::SeqCst) && !ears.wrong.load(Ordering::SeqCst);
        (matches!(left, Some(Ok(Exit::Kicked))) && heard).then_some(took)
    };
    let mut figures = Figures::default();
    // The best of three: the host has other things to do.
    let best = [(); 3].iter().filter_map(|()| run(&LOOP)).min();
    if let Some(best) = best {
        let instructions = u128::from(TURNS) * 2 + 3;
        let rate = instructions * 1_000_000_000 / best.as_nanos().max(1);
        figures.kernel_instructions_per_s = (rate as u64).max(1);
        let refused = PIECES.iter().filter(|piece| run(piece.code).is_none());
        figures.refused = refused.map(|piece| piece.name.to_owned()).collect();
    }
    figures.took_us = begin.elapsed().as_micros() as u64;
    let verdict = Verdict::of(figures);
    tracing::debug!(%verdict, "probed");
    Ok(verdict)
}

/// What KVM is good for here: found out once.
///
/// # Errors
/// Why there is none.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn kvm() -> Result<Verdict, Unavailable> {
    static VERDICT: OnceLock<Verdict> = OnceLock::new();
    // What may be opened can change while the process lives; what it then is does not.
    let system = super::kvm::System::open()?;
    if let Some(verdict) = VERDICT.get() {
        return Ok(verdict.clone());
    }
    let place = kept::place();
    let verdict = match place.as_ref().and_then(kept::read) {
        Some(verdict) => verdict,
        None => {
            let verdict = kvm_of(&system)?;
            // One that is broken may only have lacked a thread or memory at that moment.
            if let Some(place) = place.as_ref().filter(|_| !matches!(verdict, Verdict::Broken(_))) {
                kept::write(place, &verdict);
            }
            verdict
        }
    };
    Ok(VERDICT.get_or_init(|| verdict).clone())
}

/// As [`kvm`], without looking at what was found before.
///
/// # Errors
/// As [`kvm`].
pub fn kvm_anew() -> Result<Verdict, Unavailable> {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    return kvm_of(&super::kvm::System::open()?);
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    kvm()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn kvm_of(system: &super::kvm::System) -> Result<Verdict, Unavailable> {
    use super::{CpuModel, VmOptions};
    let options = VmOptions { model: CpuModel::Minimal, opinions: 0, traps: false };
    probe(|ram, clock| Ok(Box::new(super::kvm::KvmVm::new(system.clone(), ram, clock, 1, options)?))).map_err(
        |e| match e {
            HypervisorError::Unavailable(why) => why,
            e => Unavailable::Unfit(format!("KVM opens, but makes no machine: {e}")),
        },
    )
}

/// There is no KVM on this kind of host.
///
/// # Errors
/// Always.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn kvm() -> Result<Verdict, Unavailable> {
    Err(Unavailable::Platform("KVM"))
}

/// The verdict in a file, for as long as the host is up and its device the same.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kept {
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    use super::{Deserialize, Serialize, Verdict};
    use crate::sys::cache_dir;

    /// Longer ones are not ours.
    const MAX_BYTES: u64 = 4096;

    pub(super) struct Place {
        path: PathBuf,
        host: String,
    }

    #[derive(Serialize, Deserialize)]
    struct Kept {
        host: String,
        verdict: Verdict,
    }

    /// Where it is kept, and what it is true for.
    pub(super) fn place() -> Option<Place> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let device = std::fs::metadata("/dev/kvm").ok()?;
        // Modules that are loaded anew make a new device.
        let host = format!(
            "{} {} {} {}.{}",
            env!("CC_MACHINE_SOURCES"),
            boot.trim(),
            device.ino(),
            device.ctime(),
            device.ctime_nsec()
        );
        Some(Place { path: cache_dir::of_user()?.join("probe-kvm.json"), host })
    }

    pub(super) fn read(place: &Place) -> Option<Verdict> {
        let short = std::fs::metadata(&place.path).is_ok_and(|m| m.len() <= MAX_BYTES);
        let text = short.then(|| std::fs::read(&place.path).ok()).flatten()?;
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        (kept.host == place.host).then_some(kept.verdict)
    }

    /// Whole or not at all; that it fails only means another probe.
    pub(super) fn write(place: &Place, verdict: &Verdict) {
        let kept = Kept { host: place.host.clone(), verdict: verdict.clone() };
        let Some(dir) = place.path.parent() else { return };
        let written = std::fs::create_dir_all(dir).and_then(|()| {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer(&mut file, &kept)?;
            file.persist(&place.path)?;
            Ok(())
        });
        if let Err(e) = written {
            tracing::debug!(error = &e as &dyn std::error::Error, "the probe's verdict is not kept");
        }
    }
}

#[cfg(test)]
mod tests;
