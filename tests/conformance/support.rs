//! What the tests share: one machine, and ways to make others.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cc::{Instance, InstanceBuilder, Source};

/// Longer than anything takes that does not hang.
const LONG: Duration = Duration::from_secs(120);

fn source() -> Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::busybox().expect("a busybox")).clone()
}

/// A machine of the least usual size.
pub(crate) fn small() -> InstanceBuilder {
    Instance::builder(source()).memory_mb(160)
}

/// The machine that all tests share which need none of their own. It ends with the process.
pub(crate) fn shared() -> &'static Instance {
    static SHARED: OnceLock<Instance> = OnceLock::new();
    SHARED.get_or_init(|| Instance::new(source()).expect("a machine"))
}

/// Runs `sh -c script` and gives its standard output, trimmed.
pub(crate) fn sh(instance: &Instance, script: &str) -> String {
    let out = instance.command("sh").arg("-c").arg(script).output().expect(script);
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
