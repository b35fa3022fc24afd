//! Progress of what takes long: downloads and unpacking.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};

use crate::machine::boot::provider::Phase;
pub use crate::machine::boot::provider::Progress;

/// Where reports of progress go. Clones report to the same place.
#[derive(Clone)]
pub(super) enum Sink {
    /// A bar on standard error if that is a terminal and `CC_PROGRESS` is not `never`.
    Terminal,
    Callback(Arc<dyn Fn(Progress<'_>) + Send + Sync>),
}

impl Sink {
    /// Runs `f` with a callback that reports here.
    pub(super) fn during<T>(&self, f: impl FnOnce(&dyn Fn(Progress<'_>)) -> T) -> T {
        match self {
            Self::Callback(callback) => f(&**callback),
            Self::Terminal if wanted() => {
                let bar = Bar::default();
                let result = f(&|p| bar.report(p));
                bar.finish();
                result
            }
            Self::Terminal => f(&|_| {}),
        }
    }
}

fn wanted() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("CC_PROGRESS").is_none_or(|v| v != "never")
}

/// One line on the terminal, gone when done.
#[derive(Default)]
struct Bar {
    now: RefCell<Option<(String, ProgressBar)>>,
}

impl Bar {
    fn report(&self, p: Progress<'_>) {
        let verb = match p.phase {
            Phase::Waiting => "waiting for another process:",
            Phase::Index => "updating",
            Phase::Download => "downloading",
            Phase::Unpack => "unpacking",
        };
        let text = format!("{verb} {}", p.what);
        let mut now = self.now.borrow_mut();
        if now.as_ref().is_none_or(|(t, _)| *t != text) {
            if let Some((_, bar)) = now.take() {
                bar.finish_and_clear();
            }
            let (bar, template) = match p.total {
                Some(total) => {
                    (ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
                }
                None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(text.clone());
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            *now = Some((text, bar));
        }
        if let Some((_, bar)) = &*now {
            bar.set_position(p.current);
        }
    }

    fn finish(&self) {
        if let Some((_, bar)) = self.now.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}
