//! The layers of the source tree: a file uses only what lies below it, or its own folder.

use std::path::{Path, PathBuf};

/// The folders of `src` from the ground up. A folder may use those of earlier rows and nothing of its
/// own row or later ones.
const LAYERS: &[&[&str]] = &[
    &["arch", "memory", "state", "sys"],
    &["hypervisor", "vfs", "netstack"],
    // Devices that are found on a bus stand on the bus.
    &["chipset"],
    &["virtio"],
    &["machine", "agent"],
    &["oci", "dockerfile"],
    // A place without anything in it, for which those above implement their traits.
    &["host"],
    &["fs", "process", "net"],
    // What has files, processes and sockets gives them out.
    &["instance"],
];

fn layer(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&folder))
}

/// The code of a file without comments; strings stay.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let trimmed = line.trim_start();
        if trimmed.starts_with("//") {
            return "";
        }
        // A `//` in a string has no blank before and after it.
        line.split_once(" // ").map_or(line, |(code, _)| code)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The first path segments that `code` names below `root`, also in `use crate::{a::b, c}`.
fn named_below(root: &str, code: &str) -> Vec<String> {
    let word =
        |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        // Part of a longer name, or of a longer `super::` chain, which is counted by itself.
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
            continue;
        }
        let rest = &code[at + root.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(word(std::mem::take(&mut item).trim())),
                    _ => {}
                }
                if c != ',' || depth > 0 {
                    item.push(c);
                }
            }
            found.push(word(item.trim()));
        } else {
            found.push(word(rest));
        }
    }
    found.retain(|name| !name.is_empty() && name != "super");
    found
}

/// What `file`, a path below `src`, must not use but does.
fn violations(file: &Path, text: &str) -> Vec<String> {
    let mut parts = file.components().map(|c| c.as_os_str().to_string_lossy().into_owned());
    let folder = parts.next().unwrap_or_default();
    // The crate's root and its programs use whatever they like.
    if ["lib.rs", "main.rs", "bin"].contains(&folder.as_str()) {
        return Vec::new();
    }
    let folder = folder.trim_end_matches(".rs").to_owned();
    let Some(own) = layer(&folder) else {
        return vec![format!("{}: no layer for `{folder}`; give it one in tests/layers.rs", file.display())];
    };
    // `a/mod.rs` is one module deep, `a/b.rs` two; a module within the file may be deeper still.
    let depth = file.components().count() - usize::from(file.ends_with("mod.rs"));
    let code = code(text);
    let mut used = named_below("crate::", &code);
    // `super::` leads to the root from here, or from a module within the file; or to a folder's module
    // of the same depth, whose name tells.
    for depth in [depth, depth + 1] {
        let by_super = named_below(&"super::".repeat(depth), &code);
        used.extend(by_super.into_iter().filter(|name| layer(name).is_some()));
    }
    used.sort();
    used.dedup();
    used.retain(|name| *name != folder);
    let verdict = |name: String| match layer(&name) {
        Some(other) if other < own => None,
        Some(_) => Some(format!("{}: `{folder}` must not use `{name}`", file.display())),
        // A name that the root re-exports from above everything.
        None => Some(format!("{}: use `{name}` by the path of its folder", file.display())),
    };
    used.into_iter().filter_map(verdict).collect()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_use_only_what_lies_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 50, "the sources are found");
    let bad: Vec<String> = files
        .iter()
        .flat_map(|file| {
            violations(file.strip_prefix(&src).unwrap(), &std::fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn what_is_forbidden_is_found() {
    let bad = |file: &str, text: &str| violations(Path::new(file), text).len();
    assert_eq!(bad("chipset/uart.rs", "use crate::machine::Board;"), 1);
    assert_eq!(bad("chipset/uart.rs", "use crate::{sys::clock, machine::{Board, boot}};"), 1);
    assert_eq!(bad("chipset/uart.rs", "fn f() { crate::virtio::mmio::f() }"), 1);
    assert_eq!(bad("chipset/mod.rs", "use super::virtio::mmio;"), 1);
    assert_eq!(bad("chipset/uart.rs", "use super::super::virtio::mmio;"), 1);
    assert_eq!(bad("chipset/a/uart.rs", "mod tests { use super::super::super::super::virtio::mmio; }"), 1);
    assert_eq!(bad("agent/mod.rs", "use crate::machine::Machine;"), 1, "the same row");
    assert_eq!(bad("process/mod.rs", "use crate::instance::Instance;"), 1);
    assert_eq!(bad("machine/run.rs", "use crate::Error;"), 1, "the root's re-exports are from above");
    assert_eq!(bad("novel/mod.rs", ""), 1, "a folder without a layer");

    assert_eq!(bad("chipset/uart.rs", "use crate::chipset::bus; use crate::sys::{clock, random};"), 0);
    assert_eq!(bad("chipset/uart.rs", "use super::bus; mod t { use super::super::bus; }"), 0);
    assert_eq!(bad("virtio/mmio.rs", "use crate::chipset::irq; // not crate::machine"), 0);
    assert_eq!(bad("agent/mod.rs", "//! Below [`crate::process`].\n    /// [`crate::instance`]"), 0);
    assert_eq!(bad("instance/mod.rs", "use crate::{agent, machine, process::Command};"), 0);
    assert_eq!(bad("lib.rs", "pub use crate::instance::Error;"), 0);
    assert_eq!(bad("machine/x.rs", "macro_rules! m { () => { $crate::sys::clock } }"), 0);
}
