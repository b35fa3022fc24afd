//! The kernel's console: passes output on, keeps its tail, notices a panic.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes of output that are kept.
const TAIL: usize = 16 << 10;
/// What Linux prints when it gives up.
const PANIC: &[u8] = b"Kernel panic - not syncing";

type OnPanic = Box<dyn Fn() + Send>;

#[derive(Default)]
struct State {
    tail: VecDeque<u8>,
    /// How much of [`PANIC`] the last bytes match.
    matched: usize,
    panicked: bool,
    on_panic: Option<OnPanic>,
}

/// A handle to one machine's console. Clones are the same console.
#[derive(Clone, Default)]
pub struct Console {
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("panicked", &self.panicked()).finish_non_exhaustive()
    }
}

impl Console {
    /// An empty console.
    pub fn new() -> Self {
        Self::default()
    }

    /// The end of the output so far: whole lines, at most 16 KiB, invalid UTF-8 replaced.
    pub fn tail(&self) -> String {
        let state = self.lock();
        let bytes: Vec<u8> = state.tail.iter().copied().collect();
        let full = bytes.len() >= TAIL;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        match text.split_once('\n') {
            Some((_, rest)) if full => rest.into(),
            _ => text,
        }
    }

    /// Whether the kernel said that it panicked.
    pub fn panicked(&self) -> bool {
        self.lock().panicked
    }

    /// Calls `f` once, from the thread that writes output, when the kernel panics.
    pub fn on_panic(&self, f: impl Fn() + Send + 'static) {
        self.lock().on_panic = Some(Box::new(f));
    }

    /// A writer into this console that passes everything on to `next`. Errors of `next` are not
    /// the guest's problem: they end the passing on, not the console.
    pub fn writer(&self, next: Option<Box<dyn Write + Send>>) -> Box<dyn Write + Send> {
        Box::new(Writer { console: self.clone(), next })
    }

    fn take_in(&self, data: &[u8]) {
        let mut state = self.lock();
        let skip = data.len().saturating_sub(TAIL);
        state.tail.extend(&data[skip..]);
        let excess = state.tail.len().saturating_sub(TAIL);
        state.tail.drain(..excess);
        let mut fired = None;
        for &b in data {
            // The first byte of the text occurs in it once, so a mismatch restarts at 0 or 1.
            let next = if PANIC[state.matched] == b { state.matched + 1 } else { usize::from(b == PANIC[0]) };
            state.matched = next % PANIC.len();
            if next == PANIC.len() && !state.panicked {
                state.panicked = true;
                fired = state.on_panic.take();
            }
        }
        drop(state);
        if let Some(f) = fired {
            f();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

struct Writer {
    console: Console,
    next: Option<Box<dyn Write + Send>>,
}

impl Write for Writer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.console.take_in(data);
        if let Some(next) = &mut self.next
            && next.write_all(data).and_then(|()| next.flush()).is_err()
        {
            self.next = None;
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn notices_a_panic_across_writes_once() {
        let console = Console::new();
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        console.on_panic(move || {
            seen.fetch_add(1, Ordering::SeqCst);
        });
        let mut w = console.writer(None);
        w.write_all(b"KernKernel panic - not sync").unwrap();
        assert!(!console.panicked());
        w.write_all(b"ing: Kernel panic - not syncing: x\n").unwrap();
        assert!(console.panicked());
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn keeps_only_the_tail() {
        let console = Console::new();
        let mut w = console.writer(None);
        for i in 0..100_000 {
            writeln!(w, "line {i}").unwrap();
        }
        let tail = console.tail();
        assert!(tail.len() <= TAIL && tail.ends_with("line 99999\n") && tail.starts_with("line "), "{tail}");
    }
}
