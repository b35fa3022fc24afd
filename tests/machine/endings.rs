//! How machines end: panics, timeouts, power off, being closed or dropped while in use.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cc::process::Stdio;
use cc::{Error, Instance};

use crate::support::{LONG, sh, small};

/// A console writer that notes when the kernel said that it panicked.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<(Vec<u8>, Option<Instant>)>>);

impl Witness {
    fn panicked_at(&self) -> Instant {
        self.0.lock().unwrap().1.expect("the panic was seen on the console")
    }
}

impl Write for Witness {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        const PANIC: &[u8] = b"Kernel panic - not syncing";
        let mut state = self.0.lock().unwrap();
        state.0.extend_from_slice(bytes);
        if state.1.is_none() && state.0.windows(PANIC.len()).any(|w| w == PANIC) {
            state.1 = Some(Instant::now());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn r2_11_a_panic_while_booting_is_an_error_with_the_console_tail() {
    let witness = Witness::default();
    let error = small()
        .kernel_argument("rdinit=/bin/nonexistent")
        .console(witness.clone())
        .start()
        .expect_err("there is no init");
    let since = witness.panicked_at().elapsed();
    let Error::Panicked { console } = &error else { panic!("{error}") };
    assert!(console.contains("Kernel panic - not syncing"), "{console}");
    assert!(error.to_string().contains("Kernel panic - not syncing"), "{error}");
    assert!(since < Duration::from_secs(1), "{since:?} after the panic");
}

#[test]
fn r2_11_a_panic_ends_all_that_waits() {
    let witness = Witness::default();
    let instance = small().console(witness.clone()).start().unwrap();
    let spawn = |program: &str| {
        let mut command = instance.command(program);
        command.arg("1000").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let (mut waited, mut read, collected) = (spawn("sleep"), spawn("sleep"), spawn("sleep"));
    let mut stdout = read.stdout.take().unwrap();
    let (errors, end) = std::thread::scope(|scope| {
        let pending = [
            scope.spawn(|| (waited.wait().unwrap_err(), Instant::now())),
            scope.spawn(|| (stdout.read(&mut [0; 8]).unwrap_err(), Instant::now())),
            scope.spawn(|| (collected.wait_with_output().unwrap_err(), Instant::now())),
        ];
        let end = scope.spawn(|| instance.wait());
        let trigger = instance.command("sh").args(["-c", "echo c >/proc/sysrq-trigger"]).output();
        assert_eq!(trigger.unwrap_err().kind(), ErrorKind::NotConnected);
        (pending.map(|thread| thread.join().unwrap()), end.join().unwrap())
    });
    let panicked = witness.panicked_at();
    for (error, when) in errors {
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert!(error.to_string().contains("panicked"), "{error}");
        let after = when.saturating_duration_since(panicked);
        assert!(after < Duration::from_secs(1), "{after:?} after the panic");
    }
    let Err(Error::Panicked { console }) = end else { panic!("{end:?}") };
    assert!(console.contains("sysrq"), "{console}");
    assert!(console.contains("Kernel panic - not syncing"), "{console}");

    let start = Instant::now();
    assert_eq!(instance.command("true").output().unwrap_err().kind(), ErrorKind::NotConnected);
    assert!(matches!(instance.pause(), Err(Error::NotRunning(_))));
    assert!(matches!(instance.wait(), Err(Error::Panicked { .. })), "wait can be called again");
    assert!(!instance.is_running());
    instance.close().expect("closing what has ended is no error");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_timeout_while_booting_is_an_error_of_its_own() {
    // A boot runs hundreds of millions of instructions, more than any host does in the first lifetime; a
    // restore reads the state of the whole machine, which the second is too short for.
    for (lifetime, restored) in [(Duration::from_millis(50), false), (Duration::from_micros(1), true)] {
        let start = Instant::now();
        let error = small().timeout(lifetime).boot_snapshot(restored).start().unwrap_err();
        assert!(matches!(error, Error::Timeout(given) if given == lifetime), "{error}");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains(&format!("{lifetime:?}")), "{error}");
        assert!(start.elapsed() < LONG);
    }
}

/// A machine with a lifetime that ends some time after its boot, however fast this host is.
fn with_some_lifetime() -> Instance {
    let mut lifetime = Duration::from_secs(8);
    loop {
        match small().timeout(lifetime).start() {
            Ok(instance) => return instance,
            Err(Error::Timeout(_)) if lifetime < LONG => lifetime *= 2,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_timeout_during_a_command_ends_it_and_the_machine() {
    let instance = with_some_lifetime();
    let mut busy = instance.command("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let waiting = instance.command("sleep").arg("1000").output().unwrap_err();
    let ended = Instant::now();
    assert_eq!(waiting.kind(), ErrorKind::TimedOut, "{waiting}");
    assert_eq!(busy.wait().unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(instance.command("true").output().unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(matches!(instance.wait(), Err(Error::Timeout(_))));
    assert!(ended.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_the_guest_does_to_itself_is_told_apart() {
    let instance = small().start().unwrap();
    let error = instance.command("poweroff").arg("-f").output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    instance.wait().expect("the guest turned itself off, as it may");

    let instance = small().start().unwrap();
    let error = instance.command("reboot").arg("-f").output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    let end = instance.wait();
    assert!(matches!(&end, Err(Error::Died { what, .. }) if what.contains("reset")), "{end:?}");
}

#[test]
fn a_closed_machine_refuses_all() {
    let instance = small().start().unwrap();
    let mut child = instance.command("sleep").arg("1000").spawn().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| instance.wait());
        let runs = scope.spawn(|| child.wait());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished() && !runs.is_finished());
        instance.close().unwrap();
        waits.join().unwrap().expect("being closed is no error");
        assert_eq!(runs.join().unwrap().unwrap_err().kind(), ErrorKind::NotConnected);
    });
    assert!(matches!(instance.close(), Err(Error::AlreadyClosed)));
    assert!(!instance.is_running());
    assert!(matches!(instance.pause(), Err(Error::NotRunning(_))));
    assert!(matches!(instance.resume(), Err(Error::NotRunning(_))));
    let error = instance.command("true").output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(error.to_string().contains("stopped"), "{error}");
    instance.wait().unwrap();
}

#[test]
fn r2_9_shutdown_terminates_then_kills_then_turns_off() {
    const GRACE: Duration = Duration::from_millis(1500);
    let instance = small().start().unwrap();
    let spawn = |on_term: &str| {
        let script = format!("trap '{on_term}' TERM; echo ready; while :; do sleep 0.1; done");
        let mut command = instance.command("sh");
        let mut child = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        child
    };
    let (polite, stubborn) = (spawn("echo bye; exit 6"), spawn(""));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let polite = scope.spawn(|| (polite.wait_with_output().unwrap(), start.elapsed()));
        let stubborn = scope.spawn(|| (stubborn.wait_with_output().unwrap(), start.elapsed()));
        let twice = scope.spawn(|| instance.shutdown(GRACE));
        instance.shutdown(GRACE).unwrap();
        assert!(start.elapsed() >= GRACE, "{:?}", start.elapsed());
        assert!(matches!(twice.join().unwrap(), Ok(()) | Err(Error::NotRunning(_))));
        let (out, _) = polite.join().unwrap();
        assert_eq!((out.status.code(), &*out.stdout), (Some(6), &b"bye\n"[..]));
        let (out, after) = stubborn.join().unwrap();
        assert_eq!(out.status.signal(), Some(9));
        assert!(after >= GRACE, "{after:?}: it had its grace");
    });
    instance.wait().expect("it turned itself off");
    assert!(!instance.is_running());
    assert!(matches!(instance.shutdown(GRACE), Err(Error::NotRunning(_))));
    assert_eq!(instance.command("true").output().unwrap_err().kind(), ErrorKind::NotConnected);
    instance.close().expect("closing what has ended is no error");
    assert!(matches!(instance.shutdown(GRACE), Err(Error::AlreadyClosed)));
}

#[test]
fn r2_9_shutdown_does_not_wait_for_nothing() {
    let instance = small().start().unwrap();
    sh(&instance, "true");
    instance.pause().unwrap();
    let start = Instant::now();
    instance.shutdown(LONG * 10).unwrap();
    assert!(start.elapsed() < LONG);
    instance.wait().unwrap();

    let panicking = small().start().unwrap();
    let script = "trap 'echo c >/proc/sysrq-trigger' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = panicking.command("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let end = panicking.shutdown(LONG);
    assert!(matches!(end, Err(Error::Panicked { .. })), "{end:?}");
}

#[test]
fn r9_2_drop_is_bounded_and_ends_what_runs() {
    let instance = small().start().unwrap();
    let mut busy = instance.command("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let mut writer = instance.command("sleep").arg("1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    let stuck = std::thread::spawn(move || stdin.write_all(&[0; 8 << 20]).unwrap_err().kind());
    sh(&instance, "true");
    let start = Instant::now();
    drop(instance);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(busy.wait().unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(stuck.join().unwrap(), ErrorKind::NotConnected);
}

/// `exec`: the command is process 1 and the machine ends with it, however it ends, after all it wrote has come.
#[test]
fn a_machine_may_end_with_its_command() {
    let machine = small().start().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut beside = machine.command("sleep").arg("1000").spawn().unwrap();
    // It sees nothing but its own processes; the output is more than fits into any buffer.
    let script = "echo $$; cat /proc/1/cmdline | tr '\\0' ' '; echo; ls /proc | grep -c '^[0-9]'; seq 1 300000; \
        sleep 1000 & exit 7";
    let stdout = Stdio::from(file.reopen().unwrap());
    let status = machine.command("sh").arg("-c").arg(script).stdout(stdout).exec().unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(!machine.is_running());
    machine.wait().expect("it has turned itself off");
    assert_eq!(beside.wait().unwrap().signal(), Some(15), "what else runs is asked to end");
    let text = std::fs::read_to_string(file.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines.len()), ("1", 300_003));
    assert!(lines[1].starts_with("sh -c echo $$;"), "{}", lines[1]);
    // The shell, and what lists.
    assert!(lines[2].parse::<u32>().unwrap() <= 3, "{}", lines[2]);
    assert_eq!(lines[300_002], "300000");
    assert_eq!(machine.command("true").exec().unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn a_command_that_cannot_be_executed_ends_no_machine() {
    let machine = small().start().unwrap();
    assert_eq!(machine.command("/absent").exec().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sh(&machine, "echo well"), "well");
    sh(&machine, "mkfifo /tmp/end");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| machine.command("sh").args(["-c", "read x < /tmp/end; exit 3"]).exec());
        let busy = loop {
            // The first may not have been started yet; then this one, which ends at once, would be it.
            let processes = sh(&machine, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '");
            if processes.contains("read x < /tmp/end; exit 3") {
                break machine.command("true").exec().unwrap_err();
            }
        };
        assert_eq!(busy.kind(), ErrorKind::ResourceBusy);
        // A program that kills all it can reach cannot reach the machine's own.
        sh(&machine, "echo > /tmp/end");
        assert_eq!(first.join().unwrap().unwrap().code(), Some(3));
    });
    assert!(!machine.is_running());
}

#[test]
fn r2_5_what_a_command_used_is_told() {
    let machine = small().start().unwrap();
    let mut child = machine
        .command("sh")
        .args(["-c", "sleep 0.3; n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done"])
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    let used = child.resource_usage().unwrap();
    assert!(used.wall_time >= Duration::from_millis(300) && used.wall_time < LONG, "{used:?}");
    assert!(
        used.user_time > Duration::ZERO && used.user_time + used.system_time <= used.wall_time,
        "{used:?}"
    );
    assert!(used.max_rss > 100 << 10 && used.max_rss < 64 << 20, "{used:?}");
}
