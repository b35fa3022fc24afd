//! What `cc::process` promises, in a machine: the same bodies that run against the agent as a process
//! of the host. Sizes are what the software CPU does in seconds; the tests named `full_…` and ignored
//! have those of the requirements.

use std::io::ErrorKind;

use cc::process::{Child, Command, ExitStatus, Output, PtySize, Resource, Stdio};

use crate::support::{alone, sh, shared, small, wait_until};

#[path = "../common/process.rs"]
pub(crate) mod conformance;

fn command(program: &str) -> Command {
    shared().command(program)
}

macro_rules! conformance {
    ($($(#[$attribute:meta])* $name:ident = $body:ident($($arg:expr),*);)*) => {
        $($(#[$attribute])*
        #[test]
        fn $name() {
            conformance::$body(&command $(, $arg)*);
        })*
    };
}

conformance! {
    basics = basics();
    failures_of_exec = failures_of_exec(3000);
    r2_1_wait_returns_while_stdin_is_open = r2_1_wait_returns_while_stdin_is_open();
    r2_2_output_is_byte_exact = r2_2_output_is_byte_exact(8 * 1024 * 1024 + 13);
    r2_2_large_output_is_byte_exact = r2_2_large_output_is_byte_exact(32);
    r2_2_fast_exits_lose_nothing = r2_2_fast_exits_lose_nothing(100);
    r2_2_unread_stderr_does_not_block_stdout = r2_2_unread_stderr_does_not_block_stdout();
    r2_3_large_stdin_arrives = r2_3_large_stdin_arrives(8 * 1024 * 1024 + 7);
    r2_3_stdin_has_back_pressure_and_epipe = r2_3_stdin_has_back_pressure_and_epipe();
    r2_4_exit_status_is_exact = r2_4_exit_status_is_exact((0..256).step_by(17).chain([1, 125, 126, 127, 128]));
    r2_5_kill_reaches_the_process_group = r2_5_kill_reaches_the_process_group();
    r2_5_orphans_cannot_hang_completion = r2_5_orphans_cannot_hang_completion();
    r2_6_no_zombies_after_double_forks = r2_6_no_zombies_after_double_forks(500);
    r2_10_argv_and_env_are_byte_exact = r2_10_argv_and_env_are_byte_exact();
    stdio_from_files_and_children = stdio_from_files_and_children();
    users_and_groups = users_and_groups();
    r2_1_a_timeout_ends_the_group = r2_1_a_timeout_ends_the_group(&[false, true]);
    limits_sessions_and_groups = limits_sessions_and_groups();
    commands_inherit_no_descriptor = commands_inherit_no_descriptor();
    pty_is_the_terminal_of_the_command = pty_is_the_terminal_of_the_command();
    pty_takes_what_is_typed = pty_takes_what_is_typed();
    r2_2_pty_output_is_byte_exact = r2_2_pty_output_is_byte_exact(1024 * 1024 + 13, 20);
    r2_3_pty_input_is_byte_exact = r2_3_pty_input_is_byte_exact(512 * 1024 + 7);
    r2_5_pty_orphans_and_kill = r2_5_pty_orphans_and_kill();
    r2_7_resize_and_kill_while_reading = r2_7_resize_and_kill_while_reading();
    many_threads_share_one_machine = many_threads_share_one_machine(5);

    #[ignore = "minutes: 1 GiB each way"]
    full_r2_2_output_of_1_gib_is_byte_exact = r2_2_large_output_is_byte_exact(1024);
    #[ignore = "minutes: 1 GiB each way"]
    full_r2_3_stdin_of_1_gib_arrives = r2_3_large_stdin_arrives(1 << 30);
    #[ignore = "a minute: 256 commands"]
    full_r2_4_every_exit_status_is_exact = r2_4_exit_status_is_exact(0..256);
    #[ignore = "an hour: 1 GiB by pipes and by a terminal"]
    full_r2_1_gib_of_output_by_pipe_and_terminal = r2_so_much_output_once(1 << 30);
    #[ignore = "minutes: 10 000 processes"]
    full_r2_6_no_zombies_after_10_000_double_forks = r2_6_no_zombies_after_double_forks(10_000);
}

/// All of the matrix, in a machine of its own: it runs out of memory, and whom its kernel kills then is not for others
/// to suffer.
fn every_input_with_every_end(sizes: &[usize], all: bool) {
    let machine = small().memory_mb(96).start().unwrap();
    // A kernel that lends what it does not have finds out late, and kills.
    sh(&machine, "echo 1 >/proc/sys/vm/overcommit_memory");
    let memory = conformance::Memory { limit: "", status: ExitStatus::from_raw(9) };
    conformance::r2_every_input_with_every_end(&|program| machine.command(program), sizes, all, &memory);
    let killed = sh(&machine, "dmesg | grep -c 'Out of memory: Killed process'").parse::<usize>().unwrap();
    assert!(killed >= 1, "the kernel killed nobody");
    assert!(!sh(&machine, "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -c1").contains('Z'));
}

#[test]
fn r2_every_input_with_every_end() {
    every_input_with_every_end(&[65_536, 1], false);
}

#[test]
#[ignore = "minutes: 160 combinations of 10 MB and less"]
fn full_r2_every_input_with_every_end() {
    every_input_with_every_end(&[0, 1, 65_536, 10_000_000], true);
}

/// The files that name users, as a hostile image may have them.
#[test]
fn users_by_name_in_a_root_of_anybodys_making() {
    let instance = small().start().unwrap();
    sh(&instance, "rm -f /etc/passwd /etc/group");
    let who =
        |user: &str| instance.command("sh").args(["-c", "id -u; id -G; echo $HOME"]).user(user).output();
    assert_eq!(who("root").unwrap_err().kind(), ErrorKind::NotFound, "there is no /etc/passwd");
    assert_eq!(who("5").unwrap().stdout, b"5\n0\n/\n");

    sh(
        &instance,
        "mkdir -p /etc; echo 'root:x:0:0::/root:/bin/sh
bob:x:1000:100::/home/bob:/bin/sh' >/etc/passwd; echo 'users:x:100:
wheel:x:10:root,bob' >/etc/group",
    );
    conformance::users_by_name(&|program| instance.command(program));
    assert_eq!(who("bob").unwrap().stdout, b"1000\n100 10\n/home/bob\n");

    // A pipe without a writer, a device without an end, a file without an end: none is waited for.
    for odd in [
        "mkfifo /etc/passwd",
        "mknod /etc/passwd c 1 5",
        "ln -s /dev/zero /etc/passwd",
        "mkdir /etc/passwd",
        "truncate -s 9G /etc/passwd",
        "ln -s /proc/kmsg /etc/passwd",
        "ln -s passwd /etc/passwd",
    ] {
        sh(&instance, &format!("rm -rf /etc/passwd; {odd}"));
        let error = who("bob").unwrap_err();
        assert!(error.to_string().contains("/etc/passwd cannot be read"), "{odd}: {error}");
        sh(&instance, "true");
    }
    sh(&instance, "rm -rf /etc/passwd; head -c 4000000 /dev/urandom >/etc/passwd");
    assert_eq!(who("bob").unwrap_err().kind(), ErrorKind::NotFound);
    sh(&instance, "echo bob:x:4294967296:0::/:/bin/sh >/etc/passwd");
    assert_eq!(who("bob").unwrap_err().kind(), ErrorKind::NotFound);
}

/// Runs `times` commands, 32 at a time; nothing of them is left in the guest or here.
fn in_a_row(times: usize) {
    let machine = small().start().unwrap();
    let one = || assert!(machine.command("true").status().unwrap().success());
    let processes =
        || sh(&machine, "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -c1 | sort | uniq -c");
    let held = || {
        let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
        (count("/proc/self/fd"), count("/proc/self/task"))
    };
    (0..32).for_each(|_| one());
    let before = held();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..times / 32).for_each(|_| one()));
        }
    });
    let after = processes();
    assert!(!after.contains('Z'), "zombies: {after}");
    // Threads have ended but may still be listed for a moment, here and in what was counted before.
    wait_until("the threads are gone", || {
        let now = held();
        now.0 <= before.0 && now.1 <= before.1
    });
    let count = sh(&machine, "ls -d /proc/[0-9]* | wc -l").parse::<usize>().unwrap();
    assert!(count < 100, "{count} processes");
    // The agent's memory is where it was: it has not kept anything for each.
    let kib: u64 =
        sh(&machine, "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/status").parse().unwrap();
    assert!(kib < 8192, "the agent holds {kib} KiB");
}

#[test]
fn r2_6_commands_in_a_row_leave_nothing() {
    alone("commands::r2_6_commands_in_a_row_leave_nothing", || in_a_row(640));
}

#[test]
#[ignore = "minutes: 10 000 commands"]
fn full_r2_6_ten_thousand_commands_in_a_row_leave_nothing() {
    alone("commands::full_r2_6_ten_thousand_commands_in_a_row_leave_nothing", || in_a_row(10_000));
}
