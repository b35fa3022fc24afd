//! Deadlines in machine time: one thread per machine that waits for the earliest and calls back.
//!
//! A [`Timer`] is *idle* or *armed*. It fires once per arming, on the timer thread, with no lock
//! held, so its callback may arm or cancel any timer. A callback may come late, and once after a
//! `cancel` or a new `arm` that crossed it: owners compare their own deadline with the clock.
//! The thread sleeps until the earliest deadline, for ever when there is none or the clock stands.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sys::clock::Clock;

/// Where timers take the time from: a machine's [`Clock`], or one that a test moves.
pub trait TimeSource: Send + Sync {
    /// Machine time in nanoseconds.
    fn now(&self) -> u64;
    /// Time left until `deadline` (ns): zero when passed, `None` while time stands still.
    fn until(&self, deadline: u64) -> Option<Duration>;
}

impl TimeSource for Clock {
    fn now(&self) -> u64 {
        Clock::now(self)
    }
    fn until(&self, deadline: u64) -> Option<Duration> {
        Clock::until(self, deadline)
    }
}

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Armed timers as (deadline, slot).
    armed: BTreeSet<(u64, usize)>,
    /// The deadline that the thread sleeps for; `u64::MAX` for none.
    sleeping_for: u64,
    /// Something changed that the sleeping thread has to look at.
    changed: bool,
    stop: bool,
}

#[derive(Default)]
struct Slot {
    callback: Option<Callback>,
    deadline: Option<u64>,
}

struct Shared {
    clock: Arc<dyn TimeSource>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn poke(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.changed = true;
        drop(queue);
        self.wake.notify_one();
    }

    /// Takes one timer that is due.
    fn pop_due(queue: &mut Queue, now: u64) -> Option<Callback> {
        let &(deadline, id) = queue.armed.first()?;
        if deadline > now {
            return None;
        }
        queue.armed.pop_first();
        let slot = queue.slots.get_mut(id)?;
        slot.deadline = None;
        slot.callback.clone()
    }

    fn run(&self) {
        let mut queue = self.lock();
        while !queue.stop {
            queue.changed = false;
            if let Some(callback) = Self::pop_due(&mut queue, self.clock.now()) {
                drop(queue);
                callback();
                // The callback may hold the last reference to a device and with it to a timer.
                drop(callback);
                queue = self.lock();
                continue;
            }
            let deadline = queue.armed.first().map_or(u64::MAX, |first| first.0);
            let wait = if deadline == u64::MAX { None } else { self.clock.until(deadline) };
            queue.sleeping_for = deadline;
            let idle = |q: &mut Queue| !q.changed && !q.stop;
            queue = match wait {
                Some(wait) => match self.wake.wait_timeout_while(queue, wait, idle) {
                    Ok((guard, _)) => guard,
                    Err(e) => e.into_inner().0,
                },
                None => self.wake.wait_while(queue, idle).unwrap_or_else(|e| e.into_inner()),
            };
            // While awake the thread looks at the queue again before it sleeps: no need to wake it.
            queue.sleeping_for = 0;
        }
    }
}

/// The timer thread of one machine. Dropping it ends the thread; timers that are left never fire.
pub struct Timers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Timers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timers({} armed)", self.shared.lock().armed.len())
    }
}

impl Timers {
    /// Starts the thread. Fails when the host has none to give.
    pub fn new(clock: Arc<dyn TimeSource>) -> std::io::Result<Self> {
        let mut timers = Self::without_thread(clock);
        let shared = timers.shared.clone();
        timers.thread =
            Some(std::thread::Builder::new().name("cc-timers".into()).spawn(move || shared.run())?);
        Ok(timers)
    }

    fn without_thread(clock: Arc<dyn TimeSource>) -> Self {
        let shared = Shared { clock, queue: Mutex::default(), wake: Condvar::new() };
        Self { shared: Arc::new(shared), thread: None }
    }

    /// A new idle timer. `callback` runs on the timer thread and must be short. It should hold a
    /// weak reference to the device that owns the timer, as the timer holds the callback.
    pub fn add(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let slot = Slot { callback: Some(Arc::new(callback)), deadline: None };
        let mut queue = self.shared.lock();
        let id = match queue.free.pop() {
            Some(id) => id,
            None => {
                queue.slots.push(Slot::default());
                queue.slots.len() - 1
            }
        };
        queue.slots[id] = slot;
        drop(queue);
        Timer { shared: self.shared.clone(), id }
    }

    /// The clock that the deadlines are measured with.
    pub fn clock(&self) -> Arc<dyn TimeSource> {
        self.shared.clock.clone()
    }

    /// To be called after the clock was paused or resumed: the thread works out anew how long to
    /// sleep.
    pub fn clock_changed(&self) {
        self.shared.poke(self.shared.lock());
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop = true;
        self.shared.poke(queue);
        if let Some(thread) = self.thread.take()
            // A callback may drop the machine; the thread then ends right after it.
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
        let slots = {
            let mut queue = self.shared.lock();
            queue.armed.clear();
            // Slots stay for the timers that are left; only what they call goes, outside the lock.
            queue.slots.iter_mut().map(std::mem::take).collect::<Vec<_>>()
        };
        drop(slots);
    }
}

/// One deadline. Dropping it cancels it.
pub struct Timer {
    shared: Arc<Shared>,
    id: usize,
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Timer").field(&self.deadline()).finish()
    }
}

impl Timer {
    /// Fires once at machine time `deadline` (ns), at once if it has passed, instead of at any
    /// earlier set deadline.
    pub fn arm(&self, deadline: u64) {
        let mut queue = self.shared.lock();
        if queue.stop {
            return;
        }
        self.unset(&mut queue);
        queue.slots[self.id].deadline = Some(deadline);
        queue.armed.insert((deadline, self.id));
        // A thread that sleeps for an earlier deadline finds this one by itself.
        if deadline < queue.sleeping_for {
            self.shared.poke(queue);
        }
    }

    /// Back to idle.
    pub fn cancel(&self) {
        self.unset(&mut self.shared.lock());
    }

    /// The deadline it is armed for.
    pub fn deadline(&self) -> Option<u64> {
        self.shared.lock().slots[self.id].deadline
    }

    fn unset(&self, queue: &mut Queue) {
        if let Some(old) = queue.slots[self.id].deadline.take() {
            queue.armed.remove(&(old, self.id));
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        self.unset(&mut queue);
        let slot = std::mem::take(&mut queue.slots[self.id]);
        queue.free.push(self.id);
        drop(queue);
        drop(slot);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Time that moves only when told, and timers that fire as it does.
    pub(crate) struct Simulation {
        clock: Arc<Manual>,
        pub(crate) timers: Timers,
    }

    struct Manual(AtomicU64);

    impl TimeSource for Manual {
        fn now(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
        fn until(&self, _: u64) -> Option<Duration> {
            None
        }
    }

    impl Simulation {
        pub(crate) fn new() -> Self {
            let clock = Arc::new(Manual(AtomicU64::new(0)));
            Self { timers: Timers::without_thread(clock.clone()), clock }
        }

        pub(crate) fn now(&self) -> u64 {
            self.clock.now()
        }

        /// Moves time forward by `ns`, stopping at each deadline on the way.
        pub(crate) fn advance(&self, ns: u64) {
            let end = self.now() + ns;
            loop {
                let next = self.timers.shared.lock().armed.first().map(|f| f.0).filter(|d| *d <= end);
                let Some(next) = next else { break };
                self.clock.0.fetch_max(next, Ordering::SeqCst);
                let due = Shared::pop_due(&mut self.timers.shared.lock(), next);
                if let Some(callback) = due {
                    callback();
                }
            }
            self.clock.0.store(end, Ordering::SeqCst);
        }

        /// Moves time forward without letting anything fire: the host was late.
        pub(crate) fn stall(&self, ns: u64) {
            self.clock.0.fetch_add(ns, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Simulation;
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::time::Instant;

    const MS: u64 = 1_000_000;

    #[test]
    fn fires_in_order_of_deadline_once() {
        let sim = Simulation::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let make = |name: u32| {
            let log = log.clone();
            sim.timers.add(move || log.lock().unwrap().push(name))
        };
        let (a, b, c) = (make(1), make(2), make(3));
        a.arm(300);
        b.arm(100);
        c.arm(200);
        c.cancel();
        a.arm(50);
        sim.advance(1000);
        assert_eq!(*log.lock().unwrap(), [1, 2]);
        assert_eq!(a.deadline(), None);
        c.arm(2000);
        drop(c);
        sim.advance(5000);
        assert_eq!(*log.lock().unwrap(), [1, 2]);
    }

    #[test]
    fn the_thread_keeps_time_and_holds_while_paused() {
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone()).unwrap();
        let (tx, rx) = mpsc::channel();
        let timer = timers.add(move || tx.send(()).unwrap());
        timer.arm(20 * MS);
        assert!(rx.recv_timeout(Duration::from_millis(60)).is_err(), "fired while paused");
        clock.resume();
        timers.clock_changed();
        let began = Instant::now();
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(clock.now() >= 20 * MS);
        assert!(began.elapsed() >= Duration::from_millis(15));
        // Armed while the thread sleeps for something later.
        let (tx, rx) = mpsc::channel();
        let late = timers.add(|| ());
        late.arm(clock.now() + 3_600_000 * MS);
        std::thread::sleep(Duration::from_millis(5));
        let early = timers.add(move || tx.send(()).unwrap());
        early.arm(clock.now() + MS);
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn a_callback_may_rearm_and_drop_joins() {
        let clock = Arc::new(Clock::new());
        clock.resume();
        let timers = Timers::new(clock.clone()).unwrap();
        let slot: Arc<Mutex<Option<Timer>>> = Arc::default();
        let weak = Arc::downgrade(&slot);
        let count = Arc::new(AtomicU64::new(0));
        let n = count.clone();
        let (tx, rx) = mpsc::channel();
        let timer = timers.add(move || {
            if n.fetch_add(1, Ordering::SeqCst) == 4 {
                tx.send(()).unwrap();
            } else if let Some(slot) = weak.upgrade() {
                slot.lock().unwrap().as_ref().unwrap().arm(0);
            }
        });
        let mut guard = slot.lock().unwrap();
        guard.insert(timer).arm(0);
        drop(guard);
        rx.recv_timeout(Duration::from_secs(10)).unwrap();
        let held = Arc::downgrade(&count);
        drop(count);
        drop(timers);
        assert!(held.upgrade().is_none(), "the callback outlived the timers");
        let slot = slot.lock().unwrap();
        slot.as_ref().unwrap().arm(1);
        assert_eq!(slot.as_ref().unwrap().deadline(), None);
    }
}
