//! A bar for each layer that is fetched, on a terminal.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex};

use cc::oci::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Bars by layer number. Clones draw the same ones.
#[derive(Clone)]
pub(crate) struct Bars {
    all: MultiProgress,
    bars: Arc<Mutex<HashMap<usize, ProgressBar>>>,
}

impl Bars {
    /// `None` where standard error is no terminal, or `CC_PROGRESS` is `never`.
    pub(crate) fn new() -> Option<Self> {
        let wanted = std::env::var_os("CC_PROGRESS").is_none_or(|v| v != "never");
        (wanted && std::io::stderr().is_terminal())
            .then(|| Self { all: MultiProgress::new(), bars: Arc::default() })
    }

    pub(crate) fn report(&self, p: Progress<'_>) {
        let mut bars = self.bars.lock().unwrap_or_else(|e| e.into_inner());
        let bar = bars.entry(p.index).or_insert_with(|| {
            let template = "{prefix} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
            let bar = self.all.add(ProgressBar::new(p.total));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{}/{}", p.index + 1, p.count));
            bar.set_message(p.name.to_owned());
            bar
        });
        bar.set_length(p.total);
        bar.set_position(p.current);
    }

    /// Takes the bars away.
    pub(crate) fn clear(&self) {
        self.bars
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .drain()
            .for_each(|(_, bar)| bar.finish_and_clear());
        let _ = self.all.clear();
    }
}
