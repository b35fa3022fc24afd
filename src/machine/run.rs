//! Runs a board: the vCPU threads, pause and resume, the end.
//!
//! Each vCPU has a thread. The first one runs; the others wait in the host until the guest starts them through the
//! [mailbox](crate::chipset::wakeup), and again after they have halted with interrupts off, until an event ends that.
//!
//! Order of a pause: vCPUs leave guest mode, then devices stop touching memory, then time stands
//! still. Resume is the reverse. Order of an end: the reason is noted, the vCPU threads leave guest
//! mode, and the last of them does the rest: time stops, the serial port's last output is written, sockets are closed
//! (which fails everything that waits for the guest), and whoever waits for the end is told.
//!
//! Locks: `Control::state` is a leaf; nothing is called while it is held.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::arch::x86_64::VcpuState;
use crate::chipset::reset::PowerEvent;
use crate::chipset::timers::Timer;
use crate::hypervisor::{Exit, Vcpu, VcpuSignal, Vm};
use crate::state;

use super::boot::loader;
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

/// What a vCPU is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The guest has not started it.
    Waiting,
    /// It runs guest code, or is in HLT.
    Running,
    /// It has halted with interrupts off: taken offline, or stopped for good.
    Dead,
}

/// A processor that stands still.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Its registers.
    pub state: VcpuState,
    /// Those of its local APIC, where that is the backend's.
    pub lapic: Option<state::Lapic>,
}

/// One vCPU, as the others see it.
#[derive(Debug)]
struct Slot {
    stage: Stage,
    /// The guest wants it to start so.
    start: Option<VcpuState>,
    /// Its thread has left guest mode and waits while the machine is paused.
    parked: bool,
    /// What it was like when it did, unless it has not been started or the backend could not say.
    state: Option<Processor>,
    /// Guest instructions as of the last time it left guest mode.
    instructions: u64,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    vcpus: Vec<Slot>,
    /// vCPU threads that are left.
    threads: usize,
    /// Why the machine is to end, or did.
    ending: Option<Ending>,
    /// All is over; `ending` is final.
    ended: bool,
}

impl State {
    /// Every vCPU has left guest mode, and none is about to start.
    fn parked(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.parked && vcpu.start.is_none())
    }
}

/// What the vCPU threads, the devices and the owner share.
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    signals: OnceLock<Vec<Arc<dyn VcpuSignal>>>,
    console: Console,
    on_end: Mutex<Option<OnEnd>>,
}

type OnEnd = Box<dyn FnOnce(&Ending) + Send>;

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Control").field(&*self.lock()).finish()
    }
}

impl Control {
    fn new(console: Console, started: impl Iterator<Item = bool>) -> Arc<Self> {
        let vcpus: Vec<Slot> = started
            .map(|started| Slot {
                stage: if started { Stage::Running } else { Stage::Waiting },
                start: None,
                parked: false,
                state: None,
                instructions: 0,
            })
            .collect();
        let threads = vcpus.len();
        let state = State { wanted: Wanted::Run, vcpus, threads, ending: None, ended: false };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            signals: OnceLock::new(),
            console,
            on_end: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(|e| e.into_inner())
    }

    fn kick_all(&self) {
        for signal in self.signals.get().into_iter().flatten() {
            signal.kick();
        }
    }

    /// Has the machine end because of `why`, unless it ends already. Does not wait.
    fn end(&self, why: Ending) {
        {
            let mut state = self.lock();
            state.wanted = Wanted::Stop;
            state.ending.get_or_insert(why);
        }
        self.changed.notify_all();
        self.kick_all();
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

    /// The guest wants vCPU `id` to start in `start`. One that runs stays as it is.
    fn wake(&self, id: u32, start: VcpuState) {
        let mut state = self.lock();
        match state.vcpus.get_mut(id as usize) {
            Some(vcpu) if vcpu.stage != Stage::Running => vcpu.start = Some(start),
            _ => {
                drop(state);
                return tracing::debug!(id, "the guest starts a processor that is not there or runs");
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Something has come for a vCPU that had halted for good.
    fn revive(&self, id: usize) {
        let mut state = self.lock();
        if let Some(vcpu) = state.vcpus.get_mut(id).filter(|vcpu| vcpu.stage == Stage::Dead) {
            vcpu.stage = Stage::Running;
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// The signal of a vCPU, which also ends its being dead.
struct Reviver {
    signal: Arc<dyn VcpuSignal>,
    id: usize,
    /// Grows with every event.
    events: AtomicU32,
    dead: AtomicBool,
    control: Weak<Control>,
}

impl VcpuSignal for Reviver {
    fn attention(&self) {
        self.signal.attention();
        self.events.fetch_add(1, Ordering::SeqCst);
        if self.dead.load(Ordering::SeqCst)
            && let Some(control) = self.control.upgrade()
        {
            control.revive(self.id);
        }
    }
    fn kick(&self) {
        self.signal.kick();
    }
    fn set_lint0(&self, level: bool) {
        self.signal.set_lint0(level);
    }
}

/// A running machine.
pub struct Machine {
    control: Arc<Control>,
    threads: Mutex<Vec<JoinHandle<()>>>,
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
    /// Starts `board` on `platform`; `vcpus` has the state of each vCPU, none for those that the guest is to
    /// start. Before anything runs, `prepare` may bring the board into a saved state. `console` is the one that the
    /// board's serial port writes to, `power` the one whose callback it has. With a `lifetime` the machine
    /// ends when it has run for so long.
    pub fn start(
        board: Board,
        platform: Platform,
        vcpus: &[Option<Processor>],
        console: Console,
        power: &PowerSwitch,
        lifetime: Option<Duration>,
        prepare: impl FnOnce(&Board) -> Result<(), MachineError>,
    ) -> Result<Self, MachineError> {
        let state_of = |id: u32| vcpus.get(id as usize).and_then(Option::as_ref);
        let control = Control::new(console.clone(), (0..board.cpus()).map(|id| state_of(id).is_some()));
        let _ = power.control.set(Arc::downgrade(&control));
        let vm: Arc<dyn Vm> =
            platform.create_vm(board.ram.clone(), board.clock.clone(), board.cpus())?.into();
        let sink = vm.message_sink();
        let mut ready = Vec::new();
        for id in 0..board.cpus() {
            let vcpu = vm.create_vcpu(id, board.irqchip.lapic(id))?;
            let reviver = Arc::new(Reviver {
                signal: vcpu.signal(),
                id: id as usize,
                events: AtomicU32::new(0),
                dead: AtomicBool::new(false),
                control: Arc::downgrade(&control),
            });
            board.irqchip.connect(id, reviver.clone());
            ready.push((vcpu, reviver));
        }
        let _ = control.signals.set(ready.iter().map(|(vcpu, _)| vcpu.signal()).collect());
        if let Some(mailbox) = &board.wakeup {
            let control = Arc::downgrade(&control);
            mailbox.connect(Box::new(move |id, vector| {
                if let Some(control) = control.upgrade() {
                    control.wake(id, loader::secondary_state(vector));
                }
            }));
        }
        prepare(&board)?;
        for (id, (vcpu, _)) in (0..).zip(&mut ready) {
            let Some(processor) = state_of(id) else { continue };
            vcpu.set_state(&processor.state)?;
            if processor.lapic.is_some() && sink.is_some() {
                // With what `prepare` had devices signal: the backend's own would have forgotten that.
                if let Some(lapic) = board.irqchip.lay_to_rest(id) {
                    vcpu.set_local_apic(&lapic, board.clock.now())?;
                }
            }
        }
        if let Some(sink) = sink {
            board.irqchip.use_sink(sink);
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
        let mut threads = Vec::new();
        for (vcpu, reviver) in ready {
            let (shared, board) = (control.clone(), board.clone());
            let spawned = std::thread::Builder::new()
                .name(format!("cc-vcpu-{}", reviver.id))
                .spawn(move || vcpu_thread(vcpu, &reviver, &shared, &board));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    control.end(Ending::Stopped);
                    threads.into_iter().for_each(|thread: JoinHandle<()>| _ = thread.join());
                    return Err(e.into());
                }
            }
        }
        Ok(Self { control, threads: Mutex::new(threads), vm, platform, board, _timers: vec![life] })
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

    /// Guest instructions executed when the vCPUs last left guest mode, where that is counted.
    pub fn instructions(&self) -> Option<u64> {
        let sum = self.control.lock().vcpus.iter().map(|vcpu| vcpu.instructions).sum();
        Some(sum).filter(|&n| n > 0)
    }

    /// Waits for the end, at most `timeout`.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Ending> {
        let until = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.control.lock();
        while !state.ended {
            state = match until {
                None => self.control.wait(state),
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
        self.control.changed.notify_all();
        self.control.kick_all();
        let mut state = self.control.lock();
        while !state.parked() && !state.ended {
            state = self.control.wait(state);
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
        if !state.parked() || state.ended {
            return None;
        }
        let vcpus = state
            .vcpus
            .iter()
            .map(|vcpu| match vcpu.stage {
                Stage::Waiting => Some(None),
                Stage::Running | Stage::Dead => vcpu.state.clone().map(Some),
            })
            .collect();
        drop(state);
        Some(Frozen { machine: self, ran, vcpus })
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
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(|e| e.into_inner()));
        for thread in threads {
            let _ = thread.join();
        }
        self.wait(None);
    }
}

/// A machine that stands still.
#[derive(Debug)]
pub struct Frozen<'a> {
    machine: &'a Machine,
    ran: bool,
    vcpus: Option<Vec<Option<Processor>>>,
}

impl Frozen<'_> {
    /// The processors' states, none for those that the guest has not started; unless the backend could not give them.
    pub fn vcpus(&self) -> Option<&[Option<Processor>]> {
        self.vcpus.as_deref()
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
fn vcpu_thread(mut vcpu: Box<dyn Vcpu>, signal: &Reviver, control: &Control, board: &Board) {
    while may_run(&mut *vcpu, signal, control, board) {
        let events = signal.events.load(Ordering::SeqCst);
        let exit = vcpu.run(board);
        if let Some(vcpu_slot) = control.lock().vcpus.get_mut(signal.id) {
            vcpu_slot.instructions = vcpu.instructions().unwrap_or(0);
        }
        match exit {
            Ok(Exit::Kicked) => {}
            Ok(Exit::TripleFault) => {
                board.serial.drain(DRAIN);
                control.guest_ended(Ending::Crashed { what: "triple-faulted", console: String::new() });
            }
            Ok(Exit::Halted) if halted(signal, control, events) => {
                board.serial.drain(DRAIN);
                control.guest_ended(Ending::Crashed {
                    what: "halted with interrupts disabled",
                    console: String::new(),
                });
            }
            Ok(Exit::Halted) => {}
            Err(e) => control.end(Ending::Backend(e.to_string())),
        }
    }
    tracing::debug!(id = signal.id, instructions = vcpu.instructions(), "vCPU stopped");
    drop(vcpu);
    let last = {
        let mut state = control.lock();
        state.threads -= 1;
        state.threads == 0
    };
    if last {
        finish(control, board);
    }
}

/// Notes that a vCPU has halted for good, unless events have come since there were `events`. Returns whether none is
/// left that could do anything.
fn halted(signal: &Reviver, control: &Control, events: u32) -> bool {
    let mut state = control.lock();
    signal.dead.store(true, Ordering::SeqCst);
    if signal.events.load(Ordering::SeqCst) != events {
        return false;
    }
    if let Some(vcpu) = state.vcpus.get_mut(signal.id) {
        vcpu.stage = Stage::Dead;
    }
    state.vcpus.iter().all(|vcpu| vcpu.stage != Stage::Running && vcpu.start.is_none())
}

/// Stays here while there is nothing to run. Returns whether there is, or the machine ends.
fn may_run(vcpu: &mut dyn Vcpu, signal: &Reviver, control: &Control, board: &Board) -> bool {
    let id = signal.id;
    let mut state = control.lock();
    loop {
        let wanted = state.wanted;
        let Some(slot) = state.vcpus.get_mut(id) else { return false };
        if wanted == Wanted::Stop {
            return false;
        }
        if let Some(start) = slot.start.take() {
            (slot.stage, slot.parked) = (Stage::Running, false);
            drop(state);
            if let Err(e) = vcpu.set_state(&start) {
                control.end(Ending::Backend(e.to_string()));
            }
            board.irqchip.started(id as u32);
            tracing::debug!(id, "vCPU started");
            state = control.lock();
            continue;
        }
        if wanted == Wanted::Pause && !slot.parked {
            let started = slot.stage != Stage::Waiting;
            drop(state);
            let taken = started.then(|| processor(vcpu, board)).flatten();
            state = control.lock();
            if let Some(slot) = state.vcpus.get_mut(id) {
                (slot.state, slot.parked) = (taken, true);
            }
            control.changed.notify_all();
            continue;
        }
        if wanted == Wanted::Run {
            (slot.parked, slot.state) = (false, None);
            if slot.stage == Stage::Running {
                signal.dead.store(false, Ordering::SeqCst);
                return true;
            }
        }
        state = control.wait(state);
    }
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
