//! The `cc` program: its exit statuses, options and images, as a shell sees them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::scratch;
use crate::world::oci::proxy::{Action, Proxy};
use crate::world::{self, SHOW_DATA, SMALL_DATA, cc, debian, entry, registry, said, small};

#[test]
fn python_computes() {
    let Some(debian) = debian() else { return };
    let (status, stdout, stderr) = said(&["run", &debian.reference, "--", "python3", "-c", "print(6*7)"]);
    assert_eq!((status, &*stdout, &*stderr), (Some(0), "42\n", ""));
}

#[test]
fn r2_4_the_status_is_the_commands() {
    // Without `run` it is the same.
    let (status, stdout, stderr) = said(&[small(), "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((status, &*stdout, &*stderr), (Some(7), "out\n", "err\n"));
    assert_eq!(said(&["run", small(), "sh", "-c", "kill -9 $$"]).0, Some(137));
    for (program, expected) in
        [("/bin/absent", 127), ("absent", 127), ("/bin/no-program", 126), ("/bin", 126)]
    {
        let (status, stdout, stderr) = said(&["run", small(), "--", program]);
        assert_eq!((status, &*stdout), (Some(expected), ""), "{program}: {stderr}");
        assert!(stderr.starts_with(&format!("cc: {program}: ")), "{stderr}");
    }
}

#[test]
fn what_cannot_be_run_has_statuses_of_its_own() {
    let absent = format!("{}/absent:1", registry().address());
    for arguments in [
        &["run", &absent, "true"][..],
        &["run", "--pull", "never", &absent],
        &["rmi", &absent],
        &["pull", &absent],
    ] {
        let (status, stdout, stderr) = said(arguments);
        assert_eq!((status, &*stdout), (Some(69), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(&absent), "{stderr}");
    }
    for arguments in [
        &["run"][..],
        &["run", "--mount", "relative", small()],
        &["run", "--cpus", "x", small()],
        &["run", "--absent"],
    ] {
        assert_eq!(said(arguments).0, Some(64), "{arguments:?}");
    }
    // A machine that cannot be.
    let (status, _, stderr) = said(&["run", "--memory", "8", small(), "true"]);
    assert_eq!(status, Some(70), "{stderr}");
}

#[test]
fn r2_10_the_image_says_how_unless_told_otherwise() {
    let (status, stdout, stderr) = said(&["run", entry()]);
    let expected = "entry one two words\napp\nstaff\n/data/dir\nof the image\n";
    assert_eq!((status, &*stdout), (Some(0), expected), "{stderr}");

    let mut told = cc(&[
        "run",
        "--user",
        "0",
        "--env",
        "A=of the caller",
        "--workdir",
        "/made/for this",
        entry(),
        "--",
        "three",
    ]);
    let out = told.output().unwrap();
    let expected = "entry three\nroot\nroot\n/made/for this\nof the caller\n";
    assert_eq!(String::from_utf8_lossy(&out.stdout), expected, "{out:?}");

    let mut inherited =
        cc(&["run", "-e", "A", "-e", "NOT_SET", "--hostname", "her", "--entrypoint", "sh", entry(), "-c"]);
    let out = inherited
        .arg("echo $A-$HOME-${NOT_SET-none}; hostname")
        .env("A", "here")
        .env_remove("NOT_SET")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "here-/home/app-none\nher\n", "{out:?}");
}

#[test]
fn r3_2_mounts_are_read_only_unless_asked() {
    let host = scratch();
    for name in ["ro", "rw"] {
        fs::create_dir(host.path().join(name)).unwrap();
        fs::write(host.path().join(name).join("file"), "of the host\n").unwrap();
    }
    let at = |name: &str, rest: &str| format!("{}:{rest}", host.path().join(name).display());
    let script = "cat /ro/file /mnt/rw/file; echo x 2>/dev/null >/ro/file || echo refused; \
        rm /ro/file 2>/dev/null || echo refused; echo of the guest >/mnt/rw/file; echo new >/mnt/rw/new; \
        ls -A /empty; echo e >/empty/e; cat /empty/e";
    let (ro, rw) = (at("ro", "/ro"), at("rw", "/mnt/rw:rw"));
    let (status, stdout, stderr) =
        said(&["run", "-v", &ro, "--mount", &rw, "-v", "/empty", small(), "--", "sh", "-c", script]);
    assert_eq!((status, &*stdout), (Some(0), "of the host\nof the host\nrefused\nrefused\ne\n"), "{stderr}");
    let read = |name: &str| fs::read_to_string(host.path().join(name)).unwrap();
    assert_eq!(
        (read("ro/file"), read("rw/file"), read("rw/new")),
        ("of the host\n".into(), "of the guest\n".into(), "new\n".into())
    );
}

#[test]
fn a_timeout_is_status_75() {
    // Before it can run anything, and while it runs something.
    for seconds in ["1s", "10"] {
        let (status, _, stderr) = said(&["run", "--timeout", seconds, small(), "--", "sleep", "1000"]);
        assert_eq!(status, Some(75), "{stderr}");
    }
}

#[test]
fn standard_input_is_passed_on_if_asked() {
    use std::io::Write;
    use std::process::Stdio;
    let run = |arguments: &[&str]| {
        let mut child = cc(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&[b'x'; 300_000]));
        let out = child.wait_with_output().unwrap();
        let _ = writer.join();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(run(&["run", "-i", small(), "--", "wc", "-c"]).trim(), "300000");
    assert_eq!(run(&["run", small(), "--", "wc", "-c"]).trim(), "0");
}

#[test]
fn images_come_once_are_listed_and_go() {
    small();
    let proxy = Proxy::start(&registry().address(), |_| Action::Forward);
    let reference = format!("{}/small:1", proxy.address());
    let cache = world::cache("images");
    let cache = cache.to_str().unwrap();
    let requests = |arguments: &[&str], expected: i32| {
        let before = proxy.requests().len();
        let mut all = arguments.to_vec();
        all.splice(1..1, ["--cache-dir", cache]);
        let (status, stdout, stderr) = said(&all);
        assert_eq!(status, Some(expected), "{all:?}: {stderr}");
        let new = proxy.requests().split_off(before);
        (stdout, new.len(), new.iter().filter(|request| request.is_blob()).count())
    };
    let show = ["run", &reference, "--", "sh", "-c", SHOW_DATA];
    let show_never = ["run", "--pull", "never", &reference, "--", "sh", "-c", SHOW_DATA];
    requests(&show_never, 69);
    let (stdout, _, blobs) = requests(&show, 0);
    assert_eq!((&*stdout, blobs), (SMALL_DATA, 4), "three layers and a configuration");
    assert_eq!(requests(&show, 0), (SMALL_DATA.into(), 0, 0));
    assert_eq!(requests(&show_never, 0), (SMALL_DATA.into(), 0, 0));
    let (digest, asked, blobs) = requests(&["pull", "--pull", "always", &reference], 0);
    assert!(digest.starts_with("sha256:") && asked > 0, "{digest} {asked}");
    assert!(blobs <= 1, "no layer, but perhaps the configuration");

    let (list, ..) = requests(&["images"], 0);
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.contains(&reference) && list.contains("linux/amd64"), "{list}");
    let (json, ..) = requests(&["images", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (json["reference"].as_str(), json["digest"].as_str()),
        (Some(&*reference), Some(digest.trim()))
    );

    let (freed, ..) = requests(&["rmi", &reference], 0);
    assert!(freed.starts_with(&format!("removed {reference}: ")) && !freed.contains(": 0 B"), "{freed}");
    requests(&["rmi", &reference], 69);
    requests(&show_never, 69);
    let (freed, ..) = requests(&["prune"], 0);
    assert_eq!(freed, "pruned: 0 B\n", "nothing was left");
    assert_eq!(requests(&["images"], 0).0.lines().count(), 1);
}

/// A proxy that breaks off in the middle of a layer: the pull goes on where it was, the machine runs.
#[test]
fn r6_1_a_broken_pull_goes_on_and_runs() {
    small();
    let broken = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::start(&registry().address(), {
        let broken = broken.clone();
        move |request| match request.is_blob()
            && request.method == "GET"
            && !broken.swap(true, Ordering::SeqCst)
        {
            true => Action::Cut(100),
            false => Action::Forward,
        }
    });
    let reference = format!("{}/small:1", proxy.address());
    let cache = world::cache("broken");
    let (status, stdout, stderr) =
        said(&["run", "--cache-dir", cache.to_str().unwrap(), &reference, "--", "sh", "-c", SHOW_DATA]);
    assert_eq!((status, &*stdout), (Some(0), SMALL_DATA), "{stderr}");
    assert!(broken.load(Ordering::SeqCst));
}

#[test]
fn it_tells_about_itself() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said(&["version"]), (Some(0), format!("cc {version}\n"), String::new()));
    assert_eq!(said(&["--version"]).1, format!("cc {version}\n"));
    assert!(said(&["--help"]).1.contains("Exit status"));

    let (status, stdout, stderr) = said(&["doctor", "--json"]);
    assert_eq!(status, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((report["ok"].as_bool(), report["version"].as_str()), (Some(true), Some(version)));
    assert!(report["probe"]["boot_ms"].as_u64().is_some_and(|ms| ms > 0), "{report}");
    let findings = report["findings"].as_array().unwrap();
    for name in ["probe machine", "boot snapshot"] {
        assert!(findings.iter().any(|f| f["name"] == name && f["ok"] == true), "{name}: {report}");
    }

    // Where there is no kernel to be had it says so.
    let mut lame = cc(&["doctor"]);
    let out = lame.env("CC_KERNEL", "/absent/kernel").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(70), "{said}");
    assert!(said.contains("/absent/kernel") && said.ends_with("machines do not run here\n"), "{said}");
}
