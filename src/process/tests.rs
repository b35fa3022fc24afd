//! The conformance suite of this module against the agent as a process of the host, and what happens
//! around the end of a machine.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::agent::protocol::{Ending, WINDOW};
use crate::agent::testing::HostAgent;

#[path = "../../tests/common/process.rs"]
mod conformance;

fn command(agent: &HostAgent, program: &str) -> Command {
    let path = ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
    let defaults = Defaults { env: vec![path], ..Defaults::default() };
    Command::new(agent.client.clone(), Arc::new(defaults), program)
}

/// A test of the suite, which also proves that the agent is alive afterwards and ends well.
macro_rules! conformance {
    ($($name:ident($($arg:expr),*);)*) => {
        $(#[test]
        fn $name() {
            let mut agent = HostAgent::start();
            conformance::$name(&|program| command(&agent, program) $(, $arg)*);
            agent.client.ping(Duration::from_secs(30)).unwrap();
            assert_eq!(agent.stop(), Some(0));
        })*
    };
}

/// The suite on the host's own commands, as far as those have what it is about: std has no safe way to terminals,
/// limits, sessions, supplementary groups and users by name. Descriptors that are not closed on exec, such as those
/// that this process was started with, are a host's command's too.
mod host {
    use super::{Command, conformance};

    macro_rules! on_host {
        ($($name:ident($($arg:expr),*);)*) => {
            $(#[test]
            fn $name() {
                conformance::$name(&|program| Command::on_host(program.as_ref()) $(, $arg)*);
            })*
        };
    }

    #[test]
    fn what_std_lacks_is_refused() {
        let asks: [&dyn Fn(&mut Command); 5] = [
            &|c| _ = c.pty(super::PtySize { rows: 24, cols: 80 }),
            &|c| _ = c.user("root"),
            &|c| _ = c.groups(&[1]),
            &|c| _ = c.setsid(true),
            &|c| _ = c.rlimit(super::Resource::OpenFiles, 10, 10),
        ];
        for ask in asks {
            let mut command = Command::on_host("true".as_ref());
            ask(&mut command);
            assert_eq!(command.status().unwrap_err().kind(), std::io::ErrorKind::Unsupported);
        }
        let refused = Command::on_host("true".as_ref()).exec().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
        assert!(Command::on_host("true".as_ref()).status().unwrap().success());
    }

    on_host! {
        basics();
        failures_of_exec(60_000);
        r2_1_wait_returns_while_stdin_is_open();
        r2_2_output_is_byte_exact(4 * 1024 * 1024 + 13);
        r2_2_large_output_is_byte_exact(32);
        r2_2_fast_exits_lose_nothing(100);
        r2_2_unread_stderr_does_not_block_stdout();
        r2_3_large_stdin_arrives(4 * 1024 * 1024 + 7);
        r2_3_stdin_has_back_pressure_and_epipe();
        r2_4_exit_status_is_exact(0..256);
        r2_5_kill_reaches_the_process_group();
        r2_5_orphans_cannot_hang_completion();
        r2_10_argv_and_env_are_byte_exact();
        stdio_from_files_and_children();
        r2_1_a_timeout_ends_the_group(&[false]);
        many_threads_share_one_machine(20);
    }
}

conformance! {
    basics();
    failures_of_exec(60_000);
    r2_1_wait_returns_while_stdin_is_open();
    r2_2_output_is_byte_exact(64 * 1024 * 1024 + 13);
    r2_2_large_output_is_byte_exact(256);
    r2_2_fast_exits_lose_nothing(300);
    r2_2_unread_stderr_does_not_block_stdout();
    r2_3_large_stdin_arrives(16 * 1024 * 1024 + 7);
    r2_3_stdin_has_back_pressure_and_epipe();
    r2_4_exit_status_is_exact(0..256);
    r2_5_kill_reaches_the_process_group();
    r2_5_orphans_cannot_hang_completion();
    r2_6_no_zombies_after_double_forks(10_000);
    r2_10_argv_and_env_are_byte_exact();
    stdio_from_files_and_children();
    users_and_groups();
    users_by_name();
    r2_1_a_timeout_ends_the_group(&[false, true]);
    limits_sessions_and_groups();
    commands_inherit_no_descriptor();
    pty_is_the_terminal_of_the_command();
    pty_takes_what_is_typed();
    r2_2_pty_output_is_byte_exact(16 * 1024 * 1024 + 13, 300);
    r2_3_pty_input_is_byte_exact(4 * 1024 * 1024 + 7);
    r2_5_pty_orphans_and_kill();
    r2_7_resize_and_kill_while_reading();
    r2_so_much_output_once(64 << 20);
    many_threads_share_one_machine(25);
}

/// Every number that Linux has, as what a program's `exec` failed with.
#[test]
fn every_errno_has_the_kind_of_std() {
    for errno in 1..=133 {
        let mut command = Command::new(crate::agent::testing::refusing(errno), Arc::default(), "x");
        let (error, std) = (command.spawn().unwrap_err(), std::io::Error::from_raw_os_error(errno));
        assert_eq!((error.kind(), crate::agent::raw_os_error(&error)), (std.kind(), Some(errno)));
    }
}

/// Out of memory is a limit here; a machine's test runs out of what there is.
#[test]
fn r2_every_input_with_every_end() {
    let mut agent = HostAgent::start();
    let limit = "ulimit -v 100000;";
    let script = format!("{limit} {}", conformance::GLUTTON);
    let expected = std::process::Command::new("sh").arg("-c").arg(script).status().unwrap();
    assert!(!expected.success());
    let memory = conformance::Memory { limit, status: ExitStatus::from_raw(expected.into_raw()) };
    let sizes = [0, 1, 65_536, 10_000_000];
    conformance::r2_every_input_with_every_end(&|program| command(&agent, program), &sizes, true, &memory);
    agent.client.ping(Duration::from_secs(30)).unwrap();
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn r2_9_shutdown_terminates_then_kills() {
    let mut agent = HostAgent::start();
    let mut polite = command(&agent, "sh");
    polite.args(["-c", "trap 'echo bye; exit 6' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut polite = polite.stdout(Stdio::piped()).spawn().unwrap();
    let mut stubborn = command(&agent, "sh");
    stubborn.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut stubborn = stubborn.stdout(Stdio::piped()).spawn().unwrap();
    for child in [&mut polite, &mut stubborn] {
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    }
    let start = Instant::now();
    agent.client.shutdown(Ending::PowerOff, Duration::from_millis(700)).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(700), "the stubborn one had its grace");
    let out = polite.wait_with_output().unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(6), &b"bye\n"[..]));
    assert_eq!(stubborn.wait().unwrap().signal(), Some(9));
    agent.client.join();
    assert_eq!(agent.stop(), Some(0));
    let error = command(&agent, "true").output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

#[test]
fn shutdown_without_commands_is_prompt() {
    let agent = HostAgent::start();
    command(&agent, "true").output().unwrap();
    let start = Instant::now();
    agent.client.shutdown(Ending::PowerOff, Duration::from_secs(60)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_end_of_the_machine_ends_all_that_waits() {
    let mut agent = HostAgent::start();
    let spawn = |program: &str, arg: &str| {
        let mut command = command(&agent, program);
        command.arg(arg).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (mut waited, mut read, mut written) =
        (spawn("cat", "-"), spawn("sleep", "1000"), spawn("sleep", "1000"));
    let collected = spawn("sleep", "1000");
    let stdin_open = waited.stdin.take();
    let kinds = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| waited.wait().unwrap_err()),
            scope.spawn(|| read.stdout.take().unwrap().read(&mut [0; 10]).unwrap_err()),
            scope.spawn(|| written.stdin.take().unwrap().write_all(&[0; 1 << 21]).unwrap_err()),
            scope.spawn(|| collected.wait_with_output().unwrap_err()),
        ];
        std::thread::sleep(Duration::from_millis(300));
        assert!(threads.iter().all(|t| !t.is_finished()));
        agent.client.set_cause(ErrorKind::NotConnected, "machine is not running: it was unplugged");
        agent.socket.shutdown(Shutdown::Both).unwrap();
        threads.map(|t| t.join().unwrap())
    });
    drop(stdin_open);
    for error in kinds {
        assert_eq!(error.kind(), ErrorKind::NotConnected);
        assert_eq!(error.to_string(), "machine is not running: it was unplugged");
    }
    let error = command(&agent, "true").spawn().unwrap_err();
    assert_eq!(error.to_string(), "machine is not running: it was unplugged");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn r2_4_a_machine_that_dies_is_no_exit_status() {
    let agent = HostAgent::start();
    // The command's parent is the agent itself.
    let mut doom = command(&agent, "sh");
    let error = doom.args(["-c", "kill -9 $PPID; sleep 1"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn resident_kib(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn r7_1_nothing_is_left_of_commands() {
    let agent = HostAgent::start();
    let run = |times: usize| {
        for n in 0..times {
            let mut c = command(&agent, "cat");
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            if n % 2 == 0 {
                c.pty(PtySize::default());
            }
            let mut child = c.spawn().unwrap();
            match n % 3 {
                0 => drop(child.wait_with_output().unwrap()),
                1 => child.kill().unwrap(),
                _ => drop(child),
            }
            assert!(command(&agent, "/nonexistent").spawn().is_err());
        }
    };
    let settle = |descriptors_wanted: usize| {
        let start = Instant::now();
        while descriptors(agent.pid()) != descriptors_wanted || agent.client.operations() != 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "descriptors or streams are left");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let at_first = descriptors(agent.pid());
    run(30);
    settle(at_first);
    let memory = resident_kib(agent.pid());
    run(600);
    settle(at_first);
    let grown = resident_kib(agent.pid()).saturating_sub(memory);
    assert!(grown < 256, "the agent has grown by {grown} KiB");
}

#[test]
fn unread_output_is_held_within_the_window() {
    let agent = HostAgent::start();
    let before = resident_kib(agent.pid());
    let mut children: Vec<Child> = (0..20)
        .map(|_| command(&agent, "yes").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let grown = resident_kib(agent.pid()).saturating_sub(before);
    assert!(grown < 4096, "the agent holds {grown} KiB");
    for child in &children {
        let child::Process::Guest(stream) = &child.process else { panic!("a process of the agent's") };
        assert!(stream.buffered() <= 2 * WINDOW as usize);
    }
    // None of that is in another command's way.
    assert_eq!(command(&agent, "echo").arg("free").output().unwrap().stdout, b"free\n");
    for child in &mut children {
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}

#[test]
fn r9_3_handles_go_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Command>();
    shared::<Child>();
    shared::<ChildStdin>();
    shared::<ChildStdout>();
    shared::<Stdio>();
}

#[test]
fn defaults_and_getters() {
    let agent = HostAgent::start();
    let defaults = Arc::new(Defaults {
        env: vec![
            ("A".into(), "image".into()),
            ("B".into(), "image".into()),
            ("PATH".into(), "/bin:/usr/bin".into()),
        ],
        current_dir: Some("/usr".into()),
        ..Defaults::default()
    });
    let mut c = Command::new(agent.client.clone(), defaults, "sh");
    c.args(["-c", "echo $A $B $C; pwd"]).env("B", "mine").env("C", "new").env_remove("X");
    let out = c.output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "image mine new\n/usr\n");
    assert_eq!(c.get_program(), "sh");
    assert_eq!(c.get_args().len(), 2);
    assert_eq!(
        c.get_envs().collect::<Vec<_>>(),
        [("B".as_ref(), Some("mine".as_ref())), ("C".as_ref(), Some("new".as_ref())), ("X".as_ref(), None)]
    );
    assert_eq!(c.get_current_dir(), None);
    assert_eq!(c.current_dir("/").output().unwrap().stdout, b"image mine new\n/\n", "a command runs again");
}

#[test]
fn a_user_of_the_commands_own_is_not_the_images() {
    let agent = HostAgent::start();
    let path = ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
    let env = vec![path, ("HOME".into(), "/image".into())];
    let defaults = Arc::new(Defaults { env, user: Some("4242:7".into()), ..Defaults::default() });
    let who = || {
        let mut c = Command::new(agent.client.clone(), defaults.clone(), "sh");
        c.args(["-c", "id -u; id -g; echo $HOME"]);
        c
    };
    if command(&agent, "id").arg("-u").output().unwrap().stdout != b"0\n" {
        assert_eq!(who().output().unwrap_err().kind(), ErrorKind::PermissionDenied);
        return;
    }
    assert_eq!(who().output().unwrap().stdout, b"4242\n7\n/image\n");
    assert_eq!(who().user("4243").output().unwrap().stdout, b"4243\n0\n/\n");
    assert_eq!(who().uid(4244).output().unwrap().stdout, b"4244\n0\n/image\n");
}

#[test]
fn statuses_read_like_std() {
    use std::os::unix::process::ExitStatusExt as _;
    for raw in [0, 1 << 8, 255 << 8, 9, 11, 6 | 0x80, 15, 34, 64] {
        let (ours, stds) = (ExitStatus::from_raw(raw), std::process::ExitStatus::from_raw(raw));
        assert_eq!(ours.to_string(), stds.to_string());
        assert_eq!((ours.code(), ours.signal()), (stds.code(), stds.signal()));
        assert_eq!((ours.success(), ours.core_dumped()), (stds.success(), stds.core_dumped()));
    }
}
