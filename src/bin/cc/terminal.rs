//! The terminal of the caller, for a command that is given one.
//!
//! While a [`Raw`] lives, the terminal passes every key on. It is set back when the value is dropped, on a panic before
//! its message is printed, and by [`restore`], which the signal handler calls.

use std::io::IsTerminal;
use std::sync::{Mutex, Once};

use cc::process::PtySize;
use rustix::termios::{self, OptionalActions, Termios};

/// How the terminal was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw.
pub(crate) struct Raw(());

impl Raw {
    /// Makes standard input's terminal raw; `None` where it is none.
    pub(crate) fn new() -> std::io::Result<Option<Self>> {
        static HOOK: Once = Once::new();
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        HOOK.call_once(|| {
            let then = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                then(info);
            }));
        });
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *before_slot() = Some(before);
        termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn before_slot() -> std::sync::MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Sets the terminal back, if it is raw.
pub(crate) fn restore() {
    if let Some(before) = before_slot().take() {
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}

/// The size of the caller's terminal, or the usual one.
pub(crate) fn size() -> PtySize {
    let sizes = [termios::tcgetwinsize(std::io::stdout()), termios::tcgetwinsize(std::io::stdin())];
    match sizes.into_iter().flatten().find(|size| size.ws_row > 0 && size.ws_col > 0) {
        Some(size) => PtySize { rows: size.ws_row, cols: size.ws_col },
        None => PtySize::default(),
    }
}
