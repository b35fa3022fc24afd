//! `cc doctor`: what can run here and why.
//!
//! Looking at flags and device files proves little, so it boots a machine and runs a command in it.

use std::path::PathBuf;
use std::time::Instant;

use cc::{Instance, InstanceBuilder, Source};
use serde_json::{Value, json};

use super::CacheArgs;
use super::exit::{self, Failure, MACHINE};

/// One thing that was looked at.
struct Finding {
    name: &'static str,
    ok: bool,
    text: String,
}

pub(crate) fn doctor(as_json: bool, cache: &CacheArgs) -> Result<u8, Failure> {
    let mut findings = vec![host(), hardware(), cache_dir(cache)];
    let (probe, figures) = probe(cache);
    let healthy = probe.ok;
    findings.push(probe);
    if healthy {
        findings.push(restore(cache));
    }
    if as_json {
        let list: Vec<Value> =
            findings.iter().map(|f| json!({"name": f.name, "ok": f.ok, "text": f.text})).collect();
        let version = env!("CARGO_PKG_VERSION");
        println!("{}", json!({"version": version, "ok": healthy, "findings": list, "probe": figures}));
    } else {
        for Finding { name, ok, text } in &findings {
            println!("{} {name:<16} {text}", if *ok { "ok  " } else { "-   " });
        }
        println!("{}", if healthy { "machines run here" } else { "machines do not run here" });
    }
    Ok(if healthy { 0 } else { MACHINE })
}

fn host() -> Finding {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = cc::sys::memory::total().unwrap_or(0) >> 20;
    let text = format!(
        "cc {}, {} on {}, {cpus} processors, {memory} MiB of memory",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    );
    Finding { name: "host", ok: true, text }
}

/// What the probe says of hardware virtualization, and so what machines run on.
fn hardware() -> Finding {
    const NAME: &str = "hypervisor";
    match cc::supports_hypervisor() {
        Ok(how) => Finding { name: NAME, ok: true, text: how },
        Err(why) => {
            Finding { name: NAME, ok: false, text: format!("{why}; machines run on the software CPU") }
        }
    }
}

fn cache_dir(cache: &CacheArgs) -> Finding {
    const NAME: &str = "cache";
    let dir: Option<PathBuf> = cache.cache_dir.clone().or_else(cc::sys::cache_dir::locate);
    let Some(dir) = dir else {
        let text = "no place for it: set CC_CACHE_DIR or HOME".to_owned();
        return Finding { name: NAME, ok: false, text };
    };
    let tried = std::fs::create_dir_all(&dir).and_then(|()| tempfile::tempfile_in(&dir));
    let (ok, state) = match tried {
        Ok(_) => (true, "writable".to_owned()),
        // What is in it can still be used.
        Err(e) => (dir.is_dir(), e.to_string()),
    };
    let free = rustix::fs::statvfs(&dir).map(|s| (s.f_bavail * s.f_frsize) >> 20).unwrap_or(0);
    Finding { name: NAME, ok, text: format!("{}: {state}, {free} MiB free", dir.display()) }
}

/// Boots a machine with the built-in userland and runs a command in it.
fn probe(cache: &CacheArgs) -> (Finding, Value) {
    const NAME: &str = "probe machine";
    match try_probe(cache) {
        Ok((text, figures)) => (Finding { name: NAME, ok: true, text }, figures),
        Err(e) => (Finding { name: NAME, ok: false, text: exit::chain(&*e) }, Value::Null),
    }
}

/// Starts machines as callers do, by a snapshot of an earlier boot, and says why if that does not work.
fn restore(cache: &CacheArgs) -> Finding {
    const NAME: &str = "boot snapshot";
    match try_restore(cache) {
        Ok((ok, text)) => Finding { name: NAME, ok, text },
        Err(e) => Finding { name: NAME, ok: false, text: exit::chain(&*e) },
    }
}

fn try_restore(cache: &CacheArgs) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let first = builder(cache)?.start()?;
    let Some(before) = first.boot_reason().map(str::to_owned) else {
        let timing = first.timing();
        return Ok((true, format!("used, {:.1?} to be ready", timing.load + timing.boot)));
    };
    // The boot should have left one.
    let second = builder(cache)?.start()?;
    let timing = second.timing();
    Ok(match second.boot_reason() {
        None => (true, format!("made now, since {before}; {:.1?} to be ready", timing.load + timing.boot)),
        Some(after) => (false, format!("not used: {after}")),
    })
}

fn builder(cache: &CacheArgs) -> Result<InstanceBuilder, cc::Error> {
    let source = match &cache.cache_dir {
        Some(dir) => Source::busybox_in(dir)?,
        None => Source::busybox()?,
    };
    let builder = Instance::builder(source);
    Ok(match &cache.cache_dir {
        Some(dir) => builder.cache_dir(dir),
        None => builder,
    })
}

fn try_probe(cache: &CacheArgs) -> Result<(String, Value), Box<dyn std::error::Error>> {
    // What an earlier boot has left proves less.
    let instance = builder(cache)?.boot_snapshot(false).start()?;
    let begin = Instant::now();
    let out = instance.command("uname").arg("-srm").output()?;
    let command = begin.elapsed();
    if !out.status.success() {
        return Err(format!("uname in the machine ended with {:?}", out.status).into());
    }
    let kernel = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let (timing, backend) = (instance.timing(), format!("{:?}", instance.backend()));
    let text = format!("{kernel} on backend {backend}: boot {:.1?}, a command {command:.1?}", timing.boot);
    let figures = json!({
        "backend": backend, "kernel": kernel,
        "fetch_ms": timing.fetch.as_millis() as u64, "load_ms": timing.load.as_millis() as u64,
        "boot_ms": timing.boot.as_millis() as u64, "command_ms": command.as_millis() as u64,
    });
    Ok((text, figures))
}
