//! The examples run with an image of ours as they are, and say what they should.

use std::path::PathBuf;

use crate::world::{debian, missing, program, toolchains};

/// Where cargo puts the program of an example: beside this binary's directory.
fn example(name: &str) -> Option<PathBuf> {
    let test = std::env::current_exe().expect("this binary");
    let path = test.parent()?.parent()?.join("examples").join(name);
    if !path.is_file() {
        missing(&format!("{} is not there; `cargo test` without --test builds it", path.display()));
        return None;
    }
    Some(path)
}

/// Runs it with the Debian image; gives exit status and output.
fn run(name: &str) -> Option<(Option<i32>, String)> {
    run_with(name, &debian()?.reference)
}

fn run_with(name: &str, image: &str) -> Option<(Option<i32>, String)> {
    let out = program(example(name)?).arg(image).output().expect("the example runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&out.stderr), "", "{name}: {:?}", out.status);
    Some((out.status.code(), text(&out.stdout)))
}

#[test]
fn run_python() {
    let Some(said) = run("run_python") else { return };
    assert_eq!(said, (Some(0), "6*7 is 42\nsum 12 product 42\n".into()));
}

#[test]
fn shell_script() {
    let Some((status, said)) = run("shell_script") else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(status, Some(3), "{said}");
    assert!(lines[0].starts_with("| This is Debian") && lines[0].ends_with("and I am root."), "{said}");
    assert_eq!(lines[1..3], ["| Good day, Ada!", "| Good day, Grace Hopper!"]);
    assert_eq!(lines[3..], ["| 2 greeted", "the script ended with exit status: 3"]);
}

#[test]
fn compile_c() {
    let Some((status, said)) = run("compile_c") else { return };
    let (made, rest) = said.split_once('\n').unwrap_or_default();
    assert!(made.starts_with("made ") && made.ends_with(" bytes"), "{said}");
    assert_eq!((status, rest), (Some(0), "it says: a machine inside\nit ended with exit status: 3\n"));
}

#[test]
fn file_ops() {
    let Some((status, said)) = run("file_ops") else { return };
    let expected = "sorted in the machine, read here:\napple\npear\nplum\nchanged here, read in the machine: fig\n\
        writing to the input: refused\nthe input is still: fig\nin this machine: mine\nand no /home\n";
    assert_eq!((status, &*said), (Some(0), expected));
}

#[test]
fn host_or_guest() {
    let Some(path) = example("host_or_guest") else { return };
    let dir = crate::support::scratch();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    for (name, content) in [("a", "same"), ("b", "else"), ("sub/c", "same"), ("empty", ""), ("empty2", "")] {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    let out = program(path).arg(dir.path()).output().expect("the example runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{out:?}");
    let before = "1 duplicates\n  sub/c = a\n";
    let after = "2 duplicates\n  sub/c = a\n  two = one\n";
    assert_eq!(said, format!("here: {before}in the machine: {before}in the machine: {after}"));
}

#[test]
fn talk_to_server() {
    let Some(path) = example("talk_to_server") else { return };
    let out = program(path).output().expect("the example runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "from this program: <h1>Hello from the guest</h1>");
    assert!(
        lines[1].starts_with("http://127.0.0.1:")
            && lines[1].ends_with("/ says: <h1>Hello from the guest</h1>")
    );
    assert_eq!(lines[2..], ["the guest said: greetings", "and was told: well received"]);
}

#[test]
fn env_vars() {
    let Some((status, said)) = run("env_vars") else { return };
    let (first, rest) = said.split_once('\n').unwrap_or_default();
    assert!(first.starts_with("the image sets ") && first.ends_with(" variables"), "{said}");
    let expected = "good day, nobody; of the machine\ngood day, Ada; of the command\n, Grace; of the machine\nONLY=this\n";
    assert_eq!((status, rest), (Some(0), expected));
}

#[test]
fn multi_file() {
    let Some(path) = example("multi_file") else { return };
    let dir = crate::support::scratch();
    let to = dir.path().join("pages");
    let out = program(path).arg(&to).output().expect("the example runs");
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let pages =
        ["<h1>first</h1>\n<p>One file leads\n<p>to another.\n", "<h1>second</h1>\n<p>And that is all.\n"];
    let said = format!("first.html:\n{}second.html:\n{}and in {}\n", pages[0], pages[1], to.display());
    assert_eq!(String::from_utf8_lossy(&out.stdout), said);
    assert_eq!(std::fs::read_to_string(to.join("second.html")).unwrap(), pages[1]);
}

#[test]
fn stdin_echo() {
    let Some(path) = example("stdin_echo") else { return };
    let out = program(path).args(["one", "two words"]).output().expect("the example runs");
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let said = String::from_utf8_lossy(&out.stdout);
    assert_eq!(said, "1: one\n2: two words\n2 lines\nit ended with exit status: 2\n");
}

#[test]
#[ignore = "minutes: a Debian with compilers, 1 GB, is made once"]
fn full_compile_rust() {
    let Some((status, said)) = toolchains().and_then(|image| run_with("compile_rust", image)) else { return };
    let (made, rest) = said.split_once('\n').unwrap_or_default();
    assert!(made.starts_with("made ") && made.ends_with(" bytes"), "{said}");
    let expected = "9592 primes below 100000, the last is Some(99991)\nit ended with exit status: 0\n\
        0 primes below 2, the last is None\nit ended with exit status: 1\n";
    assert_eq!((status, rest), (Some(0), expected));
}

#[test]
#[ignore = "minutes: a Debian with compilers, 1 GB, is made once"]
fn full_compile_go() {
    let Some((status, said)) = toolchains().and_then(|image| run_with("compile_go", image)) else { return };
    let (made, rest) = said.split_once('\n').unwrap_or_default();
    assert!(made.starts_with("made ") && made.ends_with(" bytes"), "{said}");
    let expected = "2 and\n1 another\n1 more\n2 one\n2 word\nit ended with exit status: 5\n";
    assert_eq!((status, rest), (Some(0), expected));
}

#[test]
#[ignore = "a minute: a Debian with compilers, 1 GB, is made once"]
fn full_run_node() {
    let Some((status, said)) = toolchains().and_then(|image| run_with("run_node", image)) else { return };
    let expected = r#"{"path":"/first","visits":1,"sum":0}
{"path":"/second","visits":2,"sum":42}
the server ended with signal: 15 (SIGTERM)
"#;
    assert_eq!((status, &*said), (Some(0), expected));
}
