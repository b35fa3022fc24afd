//! Runs a board: the vCPU thread, pause and resume, the end.
//!
//! Order of a pause: vCPUs leave guest mode, then devices stop touching memory, then time stands
//! still. Resume is the reverse. Order of an end: the reason is noted, the vCPU thread leaves guest
//! mode, time stops, the serial port's last output is written, sockets are closed (which fails
//! everything that waits for the guest), and whoever waits for the end is told.
//!
//! Locks: `Control::state` is a leaf; nothing is called while it is held.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::arch::x86_64::VcpuState;
use crate::chipset::reset::PowerEvent;
use crate::chipset::timers::Timer;
use crate::hypervisor::{Exit, Vcpu, VcpuSignal, Vm};
use crate::state;

use super::{Board, Console, Ending, MachineError, Platform};

/// How long a panicking kernel may go on printing.
const PANIC_GRACE: Duration = Duration::from_millis(250);
/// How long an end waits for a slow console writer.
const DRAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    /// The vCPU thread has left guest mode and waits.
    parked: bool,
    /// What the vCPU was like when it did.
    vcpu: Option<Processor>,
    /// Why the machine is to end, or did.
    ending: Option<Ending>,
    /// All is over; `ending` is final.
    ended: bool,
}

/// A processor that stands still.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Its registers.
    pub state: VcpuState,
    /// Those of its local APIC, where that is the backend's.
    pub lapic: Option<state::Lapic>,
}

/// What the vCPU thread, the devices and the owner share.
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    signal: OnceLock<Arc<dyn VcpuSignal>>,
    console: Console,
    on_end: Mutex<Option<OnEnd>>,
    /// Guest instructions as of the last time the vCPU left guest mode.
    instructions: AtomicU64,
}

type OnEnd = Box<dyn FnOnce(&Ending) + Send>;

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Control").field(&*self.lock()).finish()
    }
}

impl Control {
    fn new(console: Console) -> Arc<Self> {
        let state = State { wanted: Wanted::Run, parked: false, vcpu: None, ending: None, ended: false };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            signal: OnceLock::new(),
            console,
            on_end: Mutex::default(),
            instructions: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has the machine end because of `why`, unless it ends already. Does not wait.
    fn end(&self, why: Ending) {
        {
            let mut state = self.lock();
            state.wanted = Wanted::Stop;
            state.ending.get_or_insert(why);
        }
        self.changed.notify_all();
        if let Some(signal) = self.signal.get() {
            signal.kick();
        }
    }

    /// The guest has given up by itself: says whether that was a panic.
    fn guest_ended(&self, otherwise: Ending) {
        if self.console.panicked() {
            self.end(Ending::Panic { console: String::new() });
        } else {
            self.end(otherwise);
        }
    }

    fn tell(&self, ending: &Ending) {
        let f = self.on_end.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(f) = f {
            f(ending);
        }
    }

    fn power(&self, event: PowerEvent) {
        self.guest_ended(match event {
            PowerEvent::Reset => Ending::Reset,
            PowerEvent::Off => Ending::PowerOff,
        });
    }
}

/// A running machine.
pub struct Machine {
    control: Arc<Control>,
    thread: Mutex<Option<JoinHandle<()>>>,
    vm: Arc<dyn Vm>,
    platform: Platform,
    board: Arc<Board>,
    /// Deadlines in machine time; kept for as long as the machine lives.
    _timers: Vec<Timer>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("control", &self.control).field("platform", &self.platform).finish()
    }
}

/// A place for the power callback before there is a machine.
#[derive(Debug, Clone, Default)]
pub struct PowerSwitch {
    control: Arc<OnceLock<Weak<Control>>>,
}

impl PowerSwitch {
    /// The callback for [`super::BoardConfig::power`].
    pub fn callback(&self) -> crate::chipset::reset::PowerCallback {
        let slot = self.control.clone();
        Arc::new(move |event| {
            if let Some(control) = slot.get().and_then(Weak::upgrade) {
                control.power(event);
            }
        })
    }
}

impl Machine {
    /// Starts `board` on `platform` from `state`; before anything runs, `prepare` may bring the board into a
    /// saved state. `console` is the one that the board's
    /// serial port writes to, `power` the one whose callback it has. With a `lifetime` the machine
    /// ends when it has run for so long.
    pub fn start(
        board: Board,
        platform: Platform,
        processor: &Processor,
        console: Console,
        power: &PowerSwitch,
        lifetime: Option<Duration>,
        prepare: impl FnOnce(&Board) -> Result<(), MachineError>,
    ) -> Result<Self, MachineError> {
        let control = Control::new(console.clone());
        let _ = power.control.set(Arc::downgrade(&control));
        let cpus = board.description().cpus.into();
        let vm: Arc<dyn Vm> = platform.create_vm(board.ram.clone(), board.clock.clone(), cpus)?.into();
        if let Some(sink) = vm.message_sink() {
            board.irqchip.use_sink(sink);
        }
        let mut vcpu = vm.create_vcpu(0, board.irqchip.lapic(0))?;
        board.irqchip.connect(0, vcpu.signal());
        let _ = control.signal.set(vcpu.signal());
        prepare(&board)?;
        vcpu.set_state(&processor.state)?;
        if let (Some(lapic), Some(_)) = (&processor.lapic, vm.message_sink()) {
            vcpu.set_local_apic(lapic, board.clock.now())?;
        }

        let weak = Arc::downgrade(&control);
        let timer = |why: Ending| {
            let control = weak.clone();
            board.timers.add(move || {
                if let Some(control) = control.upgrade() {
                    control.end(why.clone());
                }
            })
        };
        let grace = timer(Ending::Panic { console: String::new() });
        let life = timer(Ending::Timeout);
        if let Some(lifetime) = lifetime {
            life.arm(board.clock.now().saturating_add(nanos(lifetime)));
        }
        let grace = Arc::new(grace);
        let (clock, armed) = (board.clock.clone(), grace.clone());
        console.on_panic(move || armed.arm(clock.now() + nanos(PANIC_GRACE)));

        let board = Arc::new(board);
        board.clock.resume();
        vm.time_resumed();
        board.timers.clock_changed();
        let thread = {
            let (control, board) = (control.clone(), board.clone());
            std::thread::Builder::new()
                .name("cc-vcpu-0".into())
                .spawn(move || vcpu_thread(vcpu, &control, &board))?
        };
        Ok(Self { control, thread: Mutex::new(Some(thread)), vm, platform, board, _timers: vec![life] })
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// How many instructions the software CPU has executed because the backend refused them.
    pub fn opinions(&self) -> u64 {
        self.vm.opinions()
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.control.console
    }

    /// Calls `f` with the ending before the guest's sockets are closed, or now if that is past. One
    /// at a time: a second call replaces the first.
    pub fn on_end(&self, f: impl FnOnce(&Ending) + Send + 'static) {
        *self.control.on_end.lock().unwrap_or_else(|e| e.into_inner()) = Some(Box::new(f));
        if let Some(ending) = self.ending() {
            self.control.tell(&ending);
        }
    }

    /// How the machine ended, if it has.
    pub fn ending(&self) -> Option<Ending> {
        let state = self.control.lock();
        if state.ended { state.ending.clone() } else { None }
    }

    /// Guest instructions executed when the vCPU last left guest mode, where that is counted.
    pub fn instructions(&self) -> Option<u64> {
        Some(self.control.instructions.load(Ordering::Relaxed)).filter(|&n| n > 0)
    }

    /// Waits for the end, at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Ending> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.control.lock();
        while !state.ended {
            state = match until {
                None => self.control.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.control.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0
                }
            };
        }
        state.ending.clone()
    }

    /// Stops the vCPUs, devices and time. Returns when they stand, or at once when the machine has
    /// ended.
    pub fn pause(&self) {
        {
            let mut state = self.control.lock();
            if state.wanted != Wanted::Run {
                return;
            }
            state.wanted = Wanted::Pause;
        }
        if let Some(signal) = self.control.signal.get() {
            signal.kick();
        }
        let mut state = self.control.lock();
        while !state.parked && !state.ended {
            state = self.control.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        drop(state);
        for transport in &self.board.virtio {
            transport.device().pause();
        }
        self.board.clock.pause();
        self.vm.time_paused();
        self.board.timers.clock_changed();
    }

    /// Whether somebody has paused it.
    pub fn is_paused(&self) -> bool {
        self.control.lock().wanted == Wanted::Pause
    }

    /// Has the machine stand still for as long as the value lives; then it goes on if it ran before. `None` when it has
    /// ended.
    pub fn freeze(&self) -> Option<Frozen<'_>> {
        let ran = self.control.lock().wanted == Wanted::Run;
        self.pause();
        let state = self.control.lock();
        if !state.parked || state.ended {
            return None;
        }
        let vcpu = state.vcpu.clone();
        drop(state);
        Some(Frozen { machine: self, ran, vcpu })
    }

    /// Lets a paused machine run on.
    pub fn resume(&self) {
        if self.control.lock().wanted != Wanted::Pause {
            return;
        }
        self.board.clock.resume();
        self.vm.time_resumed();
        self.board.timers.clock_changed();
        for transport in &self.board.virtio {
            transport.device().resume();
        }
        let mut state = self.control.lock();
        if state.wanted == Wanted::Pause {
            state.wanted = Wanted::Run;
        }
        drop(state);
        self.control.changed.notify_all();
    }

    /// Ends the machine because of `why`, if it has not ended yet, and waits until it has.
    pub fn stop(&self, why: Ending) {
        self.control.end(why);
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        } else {
            self.wait(None);
        }
    }
}

/// A machine that stands still.
#[derive(Debug)]
pub struct Frozen<'a> {
    machine: &'a Machine,
    ran: bool,
    vcpu: Option<Processor>,
}

impl Frozen<'_> {
    /// The processor's state, unless the backend could not give it.
    pub fn vcpu(&self) -> Option<&Processor> {
        self.vcpu.as_ref()
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if self.ran {
            self.machine.resume();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop(Ending::Stopped);
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// The run loop, the same for every backend.
fn vcpu_thread(mut vcpu: Box<dyn Vcpu>, control: &Control, board: &Board) {
    loop {
        if let Some(Wanted::Stop) = wait_while_paused(control, &*vcpu, board) {
            break;
        }
        let exit = vcpu.run(board);
        control.instructions.store(vcpu.instructions().unwrap_or(0), Ordering::Relaxed);
        match exit {
            Ok(Exit::Kicked) => {}
            Ok(Exit::TripleFault) => {
                board.serial.drain(DRAIN);
                control.guest_ended(Ending::Crashed { what: "triple-faulted", console: String::new() });
            }
            Ok(Exit::Halted) => {
                board.serial.drain(DRAIN);
                control.guest_ended(Ending::Crashed {
                    what: "halted with interrupts disabled",
                    console: String::new(),
                });
            }
            Err(e) => control.end(Ending::Backend(e.to_string())),
        }
    }
    tracing::debug!(instructions = vcpu.instructions(), "vCPU stopped");
    drop(vcpu);
    finish(control, board);
}

/// Stays here while the machine is paused. Returns what is wanted now.
fn wait_while_paused(control: &Control, vcpu: &dyn Vcpu, board: &Board) -> Option<Wanted> {
    let mut state = control.lock();
    while state.wanted == Wanted::Pause {
        if !state.parked {
            state.vcpu = processor(vcpu, board);
        }
        state.parked = true;
        control.changed.notify_all();
        state = control.changed.wait(state).unwrap_or_else(|e| e.into_inner());
    }
    state.parked = false;
    Some(state.wanted)
}

/// What `vcpu` is now.
fn processor(vcpu: &dyn Vcpu, board: &Board) -> Option<Processor> {
    let parts = vcpu.state().and_then(|state| {
        let lapic = vcpu.local_apic(board.clock.now())?;
        Ok(Processor { state, lapic })
    });
    parts.inspect_err(|e| tracing::error!(error = e as &dyn std::error::Error, "the vCPU's state")).ok()
}

fn finish(control: &Control, board: &Board) {
    board.serial.drain(DRAIN);
    let tail = control.console.tail();
    let ending = {
        let mut state = control.lock();
        // A reset that was the end of a panic is a panic, whoever was first to say so.
        if control.console.panicked() && matches!(state.ending, Some(Ending::Reset | Ending::Crashed { .. }))
        {
            state.ending = Some(Ending::Panic { console: String::new() });
        }
        if let Some(Ending::Panic { console } | Ending::Crashed { console, .. }) = &mut state.ending {
            *console = tail;
        }
        state.ended = true;
        state.ending.clone().unwrap_or(Ending::Stopped)
    };
    // Before the sockets close: what waits on a stream then fails with the reason.
    control.tell(&ending);
    board.clock.pause();
    board.vsock().close();
    control.changed.notify_all();
}
