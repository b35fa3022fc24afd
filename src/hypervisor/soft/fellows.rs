//! The vCPUs of a machine to each other: waking, and having another give something up.
//!
//! A vCPU that is about to decode a page has the others drop the TLB entries through which they could write that page
//! unseen. It leaves a *request* with each and waits until all have *served* it. A vCPU serves its requests between
//! blocks, while it waits for others to serve its own (so two never wait for each other for ever), and when it enters
//! or leaves guest mode. One that is *outside* guest mode (in HLT, stopped, paused) is not waited for: it serves
//! before it goes on.
//!
//! In the same way a vCPU has all others stand still, for a locked access that the host cannot make in one step.
//!
//! Why nobody is missed: the asker sets the bit in the word, then looks whether the other is inside; the other notes
//! that it is inside, then looks at its word. One of the two sees the other. Leaving is the mirror image.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use crate::hypervisor::VcpuSignal;
use crate::memory::MAX_READERS;

use super::cpu::{Cpu, attention};

/// How often a vCPU that waits for others looks before it sleeps: most answer within a microsecond.
const LOOKS: u32 = 200;

/// So many requests that nobody waits for are kept for a vCPU outside guest mode; then it forgets its whole TLB.
const KEPT: usize = 1024;

/// What the asker wants.
#[derive(Debug, Clone, Copy)]
enum Wish {
    /// This page is not written unseen any more.
    Protect(u32),
    /// Stand still while this is the [`Fellows::period`].
    Halt(u64),
}

#[derive(Debug, Clone, Copy)]
struct Request {
    wish: Wish,
    asker: u32,
}

#[derive(Debug, Default)]
struct Requests {
    waiting: Vec<Request>,
    /// There were too many: no page is written unseen any more.
    all: bool,
    /// How many there ever were.
    count: u64,
}

/// One vCPU as other threads see it.
pub(super) struct Signal {
    pub(super) word: Arc<AtomicU32>,
    parked: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    inside: AtomicBool,
    requests: Mutex<Requests>,
    /// How many requests have been served.
    served: AtomicU64,
}

impl Signal {
    pub(super) fn new(word: Arc<AtomicU32>) -> Arc<Self> {
        Arc::new(Self {
            word,
            parked: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            inside: AtomicBool::new(false),
            requests: Mutex::default(),
            served: AtomicU64::new(0),
        })
    }

    fn raise(&self, bits: u32) {
        self.word.fetch_or(bits, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Sleeps until one of `bits` is raised.
    pub(super) fn park(&self, bits: u32) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.store(true, Ordering::SeqCst);
        while self.word.load(Ordering::SeqCst) & bits == 0 {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.store(false, Ordering::SeqCst);
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a request. Returns the count that `served` has to reach, unless nobody needs to wait.
    fn ask(&self, request: Request) -> Option<u64> {
        let count = {
            let mut requests = self.requests();
            if requests.waiting.len() >= KEPT {
                requests.waiting.clear();
                requests.all = true;
            }
            requests.waiting.push(request);
            requests.count += 1;
            requests.count
        };
        self.word.fetch_or(attention::REQUEST, Ordering::SeqCst);
        if !self.inside.load(Ordering::SeqCst) {
            return None;
        }
        // It may itself be waiting for others.
        self.raise(attention::REQUEST);
        Some(count)
    }

    fn has_served(&self, count: u64) -> bool {
        self.served.load(Ordering::SeqCst) >= count
    }
}

impl VcpuSignal for Signal {
    fn attention(&self) {
        self.raise(attention::EVENT);
    }
    fn kick(&self) {
        self.raise(attention::KICK);
    }
}

/// The vCPUs of one machine, by their number as readers of code.
#[derive(Default)]
pub(super) struct Fellows {
    members: RwLock<[Option<Arc<Signal>>; MAX_READERS as usize]>,
    /// Held by the vCPU that has the others stand still.
    turn: Mutex<()>,
    /// Odd while the others are to stand still; grows with every beginning and end. Changed with `period_lock` held.
    period: AtomicU64,
    period_lock: Mutex<()>,
    period_over: Condvar,
}

impl Fellows {
    pub(super) fn join(&self, index: u32, signal: Arc<Signal>) {
        self.members.write().unwrap_or_else(PoisonError::into_inner)[index as usize] = Some(signal);
    }

    pub(super) fn leave(&self, index: u32) {
        self.members.write().unwrap_or_else(PoisonError::into_inner)[index as usize] = None;
    }

    fn get(&self, index: u32) -> Option<Arc<Signal>> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        members.get(index as usize).cloned().flatten()
    }
}

impl Fellows {
    /// Begins the next period and gives its number.
    fn next_period(&self) -> u64 {
        let _guard = self.period_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let period = self.period.fetch_add(1, Ordering::SeqCst) + 1;
        self.period_over.notify_all();
        period
    }

    /// Waits for the end of `period`, and not of any that follows: who begins that one waits for all others to stand
    /// still anew.
    fn wait_for_end_of(&self, period: u64) {
        let mut guard = self.period_lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.period.load(Ordering::SeqCst) == period {
            guard = self.period_over.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Cpu {
    /// Enters guest mode.
    pub(super) fn enter(&mut self) {
        if self.several {
            loop {
                self.signal.inside.store(true, Ordering::SeqCst);
                let period = self.fellows.period.load(Ordering::SeqCst);
                if period.is_multiple_of(2) {
                    break;
                }
                self.signal.inside.store(false, Ordering::SeqCst);
                self.fellows.wait_for_end_of(period);
            }
            self.serve();
        }
    }

    /// Leaves guest mode: nobody waits for this vCPU until it enters again.
    pub(super) fn leave(&mut self) {
        if self.several {
            self.signal.inside.store(false, Ordering::SeqCst);
            self.serve();
        }
    }

    /// Does what the others have asked for. Between blocks only: no way to memory may be held across it.
    pub(super) fn serve(&mut self) {
        let signal = self.signal.clone();
        if signal.word.load(Ordering::SeqCst) & (attention::REQUEST | attention::ANSWER) == 0 {
            return;
        }
        signal.word.fetch_and(!(attention::REQUEST | attention::ANSWER), Ordering::SeqCst);
        let (waiting, all, count) = {
            let mut requests = signal.requests();
            (std::mem::take(&mut requests.waiting), std::mem::take(&mut requests.all), requests.count)
        };
        if waiting.is_empty() {
            return;
        }
        let mut askers = 0u32;
        let mut halt = None;
        if all {
            // It stays a writer of the pages, of which others will ask it again.
            self.tlb.flush(true);
            askers = u32::MAX;
        }
        for Request { wish, asker } in waiting {
            askers |= 1 << asker;
            match wish {
                Wish::Protect(page) => {
                    self.tlb.protect(page);
                    self.code.give_up_writing(page);
                }
                Wish::Halt(period) => halt = Some(period),
            }
        }
        signal.served.store(count, Ordering::SeqCst);
        while askers != 0 {
            let asker = askers.trailing_zeros();
            askers &= askers - 1;
            if let Some(asker) = self.fellows.get(asker) {
                asker.raise(attention::ANSWER);
            }
        }
        if let Some(period) = halt {
            self.fellows.wait_for_end_of(period);
        }
    }

    /// Has the vCPUs in `writers` write RAM page `page` no longer unseen, and waits until they do not.
    #[cold]
    pub(super) fn stop_writers(&mut self, mut writers: u32, page: u32) {
        let me = self.code.index();
        #[cfg(test)]
        if self.careless {
            writers &= 1 << me;
        }
        if writers & 1 << me != 0 {
            self.tlb.protect(page);
            self.code.give_up_writing(page);
            writers &= !(1 << me);
        }
        let mut waiting = Vec::new();
        while writers != 0 {
            let index = writers.trailing_zeros();
            writers &= writers - 1;
            // One that has left has no TLB.
            let Some(fellow) = self.fellows.get(index) else { continue };
            if let Some(count) = fellow.ask(Request { wish: Wish::Protect(page), asker: me }) {
                waiting.push((fellow, count));
            }
        }
        self.wait_for(waiting);
    }

    /// Does `f` while no other vCPU runs guest code.
    #[cold]
    pub(super) fn alone<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        if !self.several {
            return f(self);
        }
        let (me, fellows) = (self.code.index(), self.fellows.clone());
        let _turn = loop {
            match fellows.turn.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(e)) => break e.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    // Whoever has it may be waiting for this vCPU.
                    self.serve();
                    std::thread::yield_now();
                }
            }
        };
        let period = fellows.next_period();
        let mut waiting = Vec::new();
        for index in (0..MAX_READERS).filter(|&index| index != me) {
            let Some(fellow) = fellows.get(index) else { continue };
            // One that is outside finds out when it enters.
            if fellow.inside.load(Ordering::SeqCst)
                && let Some(count) = fellow.ask(Request { wish: Wish::Halt(period), asker: me })
            {
                waiting.push((fellow, count));
            }
        }
        self.wait_for(waiting);
        let result = f(self);
        fellows.next_period();
        result
    }

    /// Waits until each of `waiting` has served so many requests.
    fn wait_for(&mut self, mut waiting: Vec<(Arc<Signal>, u64)>) {
        let mut looks = 0;
        loop {
            // Before the look: an answer that comes after it is raised anew.
            self.serve();
            waiting.retain(|(fellow, count)| !fellow.has_served(*count));
            if waiting.is_empty() {
                return;
            }
            if looks < LOOKS {
                looks += 1;
                std::hint::spin_loop();
            } else {
                let signal = self.signal.clone();
                signal.park(attention::REQUEST | attention::ANSWER);
            }
        }
    }
}
