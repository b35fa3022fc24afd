//! Guests that say more than anyone wants to hear: the host neither hangs nor grows.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cc::Instance;
use cc::process::{Child, Stdio};

use crate::support::{alone, resident_beyond_guest_ram_kib, sh, small, wait_until};

/// A console writer that takes its time, or fails.
struct Bad {
    delay: Duration,
    fails_after: u64,
    taken: Arc<AtomicU64>,
}

impl Write for Bad {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::thread::sleep(self.delay);
        let n = bytes.len().min(100);
        if self.taken.fetch_add(n as u64, Ordering::Relaxed) > self.fails_after {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Floods the console from user space and from the kernel until killed.
fn flood(instance: &Instance) -> Vec<Child> {
    sh(instance, "echo on >/proc/sys/kernel/printk_devkmsg; echo 8 >/proc/sys/kernel/printk");
    [
        "exec yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa >/dev/console",
        "exec yes '<0>flood' >/dev/kmsg",
    ]
    .iter()
    .map(|script| instance.command("sh").args(["-c", script]).spawn().unwrap())
    .collect()
}

fn console_flood(delay: Duration, fails_after: u64) {
    let taken = Arc::new(AtomicU64::new(0));
    let instance = small().console(Bad { delay, fails_after, taken: taken.clone() }).start().unwrap();
    sh(&instance, "true");
    let before = resident_beyond_guest_ram_kib();
    let mut children = flood(&instance);
    let start = Instant::now();
    // More than the 1 MiB that waits for a slow writer, as the guest's own counter of the port says.
    let sent = || -> u64 {
        let counters = sh(&instance, "cat /proc/tty/driver/serial");
        let counter = counters.split_whitespace().find_map(|word| word.strip_prefix("tx:"));
        counter.expect("the port's counter").parse().unwrap()
    };
    wait_until("the flood runs", || sent() > (1 << 20) || start.elapsed() > Duration::from_secs(10));
    let grown = resident_beyond_guest_ram_kib().saturating_sub(before);
    println!(
        "{} KiB sent by {:.1?}, {} bytes taken, grown by {grown} KiB",
        sent() >> 10,
        start.elapsed(),
        taken.load(Ordering::Relaxed)
    );
    assert!(sent() > 100_000, "that was no flood");
    assert!(grown < 24 * 1024, "grown by {grown} KiB");
    assert!(instance.console_tail().len() <= 16 << 10);
    for child in &mut children {
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    assert_eq!(sh(&instance, "echo alive"), "alive");
    let start = Instant::now();
    drop(instance);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_flooded_console_with_a_slow_writer() {
    alone("floods::a_flooded_console_with_a_slow_writer", || {
        console_flood(Duration::from_millis(50), u64::MAX);
    });
}

#[test]
fn a_flooded_console_with_a_failing_writer() {
    alone("floods::a_flooded_console_with_a_failing_writer", || console_flood(Duration::ZERO, 1000));
}

#[test]
fn output_that_nobody_reads_is_held_within_bounds() {
    alone("floods::output_that_nobody_reads_is_held_within_bounds", || {
        let instance = small().start().unwrap();
        sh(&instance, "true");
        let before = resident_beyond_guest_ram_kib();
        let mut children: Vec<Child> = (0..20)
            .map(|_| {
                let mut yes = instance.command("yes");
                yes.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for _ in 0..5 {
            assert_eq!(sh(&instance, "echo free"), "free");
            std::thread::sleep(Duration::from_millis(300));
        }
        let grown = resident_beyond_guest_ram_kib().saturating_sub(before);
        println!("20 unread streams: grown by {grown} KiB");
        assert!(grown < 48 * 1024, "grown by {grown} KiB");
        for child in &mut children {
            let mut head = [0; 1000];
            child.stdout.as_mut().unwrap().read_exact(&mut head).unwrap();
            assert_eq!(head, *b"y\n".repeat(500));
            child.kill().unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        assert_eq!(sh(&instance, "echo alive"), "alive");
    });
}
