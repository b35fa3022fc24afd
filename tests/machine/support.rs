//! What the tests share: one machine, ways to be alone, figures of this process.

use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cc::{Instance, InstanceBuilder, Source};

/// Longer than anything takes that does not hang.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The built-in userland.
pub(crate) fn source() -> Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| Source::busybox().expect("a busybox")).clone()
}

/// A machine of the least usual size.
pub(crate) fn small() -> InstanceBuilder {
    Instance::builder(source()).memory_mb(160)
}

/// The machine that all tests share which only run commands. It ends with the process.
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

/// Compiles a C program so that it runs anywhere; `None` where that cannot be done.
pub(crate) fn compiled(source: &str) -> Option<Vec<u8>> {
    let dir = scratch();
    std::fs::write(dir.path().join("it.c"), source).expect("a file");
    let mut compiler = std::process::Command::new("cc");
    let out = compiler.args(["-O1", "-static", "-o", "it", "it.c"]).current_dir(&dir).output().ok()?;
    out.status.success().then(|| std::fs::read(dir.path().join("it")).expect("the program"))
}

/// Writes a program of the host's into a machine.
pub(crate) fn install(instance: &Instance, path: &str, program: &[u8]) {
    let mut cat = instance.command("sh");
    cat.args(["-c", "cat > \"$0\" && chmod 755 \"$0\"", path]).stdin(cc::process::Stdio::piped());
    let mut cat = cat.spawn().expect("a shell");
    std::io::Write::write_all(&mut cat.stdin.take().expect("a pipe"), program).expect("a program");
    assert!(cat.wait().expect("a status").success(), "{path}");
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `body` in a process of its own, with a directory of its own for temporary files, which runs nothing but the
/// test `name`: the calling test's path in this binary.
pub(crate) fn alone(name: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "CC_TEST_ALONE";
    if std::env::var(VARIABLE).is_ok_and(|v| v == name) {
        return body();
    }
    let dir = scratch();
    let out = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .env("TMPDIR", dir.path())
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .output()
        .expect("this binary runs");
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name} failed in its own process");
    assert!(text.contains("1 passed"), "there is no test {name}");
}

/// Resident memory of this process without that of guests, in KiB.
pub(crate) fn resident_beyond_guest_ram_kib() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
    let mut guest = false;
    let mut sum = 0;
    for line in maps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let kib: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
            sum += if guest { 0 } else { kib };
        } else if line.split_whitespace().next().is_some_and(|word| word.contains('-')) {
            guest = line.contains("cc-guest-ram") || line.contains("/snapshots/");
        }
    }
    sum
}

/// A static busybox that also runs on this host, from where [`source`] has it.
pub(crate) fn busybox() -> &'static [u8] {
    static BUSYBOX: OnceLock<Vec<u8>> = OnceLock::new();
    BUSYBOX.get_or_init(|| cc::machine::boot::provider::Provider::new().busybox(&|_| {}).expect("a busybox"))
}

/// A disk of a few MiB.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where it cannot be mounted, which takes root; that has been said then.
    pub(crate) fn new(mib: u32) -> Option<SmallDisk> {
        let dir = scratch();
        let size = format!("size={mib}m");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).stderr(std::process::Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(SmallDisk(dir));
        }
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        // The handle itself, past the capture of output.
        let _ = writeln!(std::io::stderr(), "{test}: NOT RUN, it takes root to mount a small disk");
        None
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A directory that is gone with the value.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}
