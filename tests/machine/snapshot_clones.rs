//! Clones that are taken while something is under way: it goes on in the clone as in the machine it was cloned from.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use cc::Instance;
use cc::process::Stdio;

use crate::support::{compiled, install, sh, small, wait_until};
use crate::world;

fn host_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The guest's clock is the host's, its timers work, and nothing of its kernel thinks that it was gone.
pub(crate) fn assert_time_is_right(machine: &Instance) {
    let before = host_seconds();
    let guest: u64 = sh(machine, "date +%s").parse().unwrap();
    assert!((before - 1..=host_seconds() + 1).contains(&guest), "{guest}, and the host has {before}");
    assert_eq!(sh(machine, "sleep 0.05; echo woke"), "woke");
    assert_eq!(sh(machine, "dmesg | grep -ci -e 'soft lockup' -e 'rcu.*stall' -e 'unstable' || true"), "0");
}

/// To a clone it is the same whether the host's clock was set after the snapshot or its machine's before.
#[test]
fn r5_2_clones_have_the_hosts_time_whatever_their_snapshot_had() {
    let parent = small().start().unwrap();
    sh(&parent, "(sleep 1; echo slept > /srv/slept) > /dev/null 2>&1 &");
    for hours in [5, -5] {
        let set = host_seconds() as i64 + hours * 3600;
        sh(&parent, &format!("date -s @{set}"));
        let uptime =
            |machine: &Instance| -> f64 { sh(machine, "cut -d' ' -f1 /proc/uptime").parse().unwrap() };
        let before = uptime(&parent);
        let clone = parent.fork(1).unwrap().remove(0);
        assert_time_is_right(&clone);
        assert!((before..before + 100.0).contains(&uptime(&clone)), "time since the boot never jumps");
        // A sleep that has begun before does not end with the clock's jump only, or never.
        wait_until("the sleep ends", || sh(&clone, "cat /srv/slept 2>/dev/null; true") == "slept");
        let wrong: i64 = sh(&parent, "date +%s").parse().unwrap();
        assert!((wrong - set).abs() < 100, "the parent's clock is the parent's");
        sh(&parent, "rm -f /srv/slept; (sleep 1; echo slept > /srv/slept) > /dev/null 2>&1 &");
    }
}

#[test]
fn r5_1_clones_share_no_random_numbers() {
    let parent = small().start().unwrap();
    // A process that is there already, with the device open, asks as the first.
    sh(
        &parent,
        "mkfifo /tmp/go; (exec 3< /dev/urandom; read x; head -c 16 /proc/self/fd/3 | od -An -tx1 > /tmp/drawn) < /tmp/go > /dev/null 2>&1 &",
    );
    let ask = "echo > /tmp/go; cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; \
        grep stack /proc/self/maps; until [ -s /tmp/drawn ]; do sleep 0.01; done; cat /tmp/drawn";
    let clones = parent.fork(3).unwrap();
    let answers: Vec<Vec<String>> =
        clones.iter().chain([&parent]).map(|m| sh(m, ask).lines().map(str::to_owned).collect()).collect();
    for (n, one) in answers.iter().enumerate() {
        assert_eq!(one.len(), 4, "{one:?}");
        for other in &answers[..n] {
            assert!(one.iter().zip(other).all(|(a, b)| a != b), "{one:?} {other:?}");
        }
    }
}

#[test]
fn r5_3_input_under_way_is_the_parents() {
    let parent = small().start().unwrap();
    let mut child = parent.command("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes: Vec<u8> = (0..8_000_000u32).map(|n| (n ^ n >> 9) as u8).collect();
    let (out, clones) = std::thread::scope(|scope| {
        let (begun, wait) = std::sync::mpsc::channel();
        let bytes = &bytes;
        scope.spawn(move || {
            for (n, piece) in bytes.chunks(100_000).enumerate() {
                stdin.write_all(piece).unwrap();
                if n == 5 {
                    begun.send(()).unwrap();
                }
            }
        });
        wait.recv().unwrap();
        let clones: Vec<Instance> = (0..2).flat_map(|_| parent.fork(1).unwrap()).collect();
        (child.wait_with_output().unwrap(), clones)
    });
    assert!(out.status.success());
    let mut again = parent.command("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    again.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(out.stdout, again.wait_with_output().unwrap().stdout, "nothing is lost and nothing twice");
    for clone in &clones {
        // There nobody writes any more, and it is told.
        wait_until("the reader ends", || sh(clone, "pidof md5sum || echo none") == "none");
        assert_eq!(sh(clone, "echo in | md5sum"), sh(&parent, "echo in | md5sum"));
    }
}

#[test]
fn a_clone_in_the_midst_of_synchronising_goes_on() {
    let parent = small().start().unwrap();
    let work = "n=0; while :; do n=$((n+1)); echo $n > /srv/new; \
        dd if=/srv/new of=/srv/synced conv=fsync 2>/dev/null; echo $n > /srv/next; mv /srv/next /srv/done; done";
    sh(&parent, &format!("({work}) > /dev/null 2>&1 &"));
    let number = |machine: &Instance, file: &str| {
        sh(machine, &format!("cat {file} 2>/dev/null || echo 0")).parse().unwrap_or(0u64)
    };
    wait_until("it has begun", || number(&parent, "/srv/done") > 2);
    for _ in 0..3 {
        let begun = number(&parent, "/srv/done");
        let clone = parent.fork(1).unwrap().remove(0);
        let there = number(&clone, "/srv/done");
        assert!(there >= begun, "{there} {begun}");
        wait_until("it goes on", || number(&clone, "/srv/done") > there + 2);
        sh(&clone, "sync");
    }
    let now = number(&parent, "/srv/done");
    wait_until("it goes on", || number(&parent, "/srv/done") > now + 2);
}

#[test]
fn pipes_between_processes_lose_nothing_in_a_clone() {
    let parent = small().start().unwrap();
    sh(&parent, "seq 1 4000 > /srv/data; md5sum < /srv/data > /srv/right");
    let work =
        "while :; do cat /srv/data | gzip -1 | cat | gzip -d | tee /srv/copy | md5sum >> /srv/sums; done";
    sh(&parent, &format!("({work}) > /dev/null 2>&1 &"));
    let count = |machine: &Instance| sh(machine, "cat /srv/sums 2>/dev/null | wc -l").parse::<u32>().unwrap();
    wait_until("one is done", || count(&parent) > 0);
    let mut clones: Vec<Instance> = (0..2).flat_map(|_| parent.fork(1).unwrap()).collect();
    clones.push(parent);
    for machine in &clones {
        // The one that was under way.
        let now = count(machine);
        wait_until("it goes on", || count(machine) > now);
        assert_eq!(
            sh(machine, "sort -u /srv/sums; cat /srv/right | wc -l"),
            sh(machine, "cat /srv/right; echo 1")
        );
    }
}

/// Opens a thousand files, reads as much of each as its number says, waits for a line, and reads on.
const OPENER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define FILES 1000

int main(void) {
    static int files[FILES];
    char name[32], text[4096], wanted[16];
    for (int n = 0; n < FILES; n++) {
        snprintf(name, sizeof name, "/srv/many/%d", n);
        files[n] = open(name, O_RDWR | O_CREAT | (n % 3 ? 0 : O_APPEND), 0600);
        if (files[n] < 0) return 1;
        memset(text, 0, sizeof text);
        for (int i = 0; i < 300; i++) snprintf(text + 8 * i, 9, "%03d:%03d\n", n, i);
        if (write(files[n], text, 2400) != 2400 || lseek(files[n], 0, SEEK_SET)) return 2;
        if (read(files[n], text, 8 * (n % 250)) != 8 * (n % 250)) return 3;
        if (n % 5 == 0 && unlink(name)) return 4;
    }
    puts("open");
    fflush(stdout);
    int go = open("/tmp/go", O_RDONLY);
    if (read(go, text, 1) != 1) return 5;
    int good = 0;
    for (int n = 0; n < FILES; n++) {
        snprintf(wanted, sizeof wanted, "%03d:%03d\n", n, n % 250);
        if (lseek(files[n], 0, SEEK_CUR) == 8 * (n % 250) && read(files[n], text, 8) == 8 && !memcmp(text, wanted, 8)) good++;
    }
    int done = open("/tmp/done", O_WRONLY);
    dprintf(done, "%d good\n", good);
    return 0;
}
"#;

#[test]
fn a_thousand_open_files_are_open_in_a_clone() {
    let Some(opener) = compiled(OPENER) else {
        return world::missing("a C compiler with a static C library");
    };
    let parent = small().start().unwrap();
    install(&parent, "/bin/opener", &opener);
    sh(&parent, "mkdir /srv/many; mkfifo /tmp/go /tmp/done");
    let mut child = parent.command("opener").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"open\n");
    let clones = parent.fork(2).unwrap();
    // What one does with its files is nothing to the others, also to those without a name.
    sh(
        &parent,
        "for n in $(seq 1 7 999); do [ $((n % 5)) = 0 ] || echo other > /srv/many/$n; done; rm -r /srv/many",
    );
    let finish = |machine: &Instance| sh(machine, "echo > /tmp/go & cat /tmp/done");
    for clone in &clones {
        assert_eq!(finish(clone), "1000 good");
        assert_eq!(sh(clone, "ls /srv/many | wc -l"), "800");
    }
    assert_ne!(finish(&parent), "1000 good", "the test sees files that are not as they were");
}
