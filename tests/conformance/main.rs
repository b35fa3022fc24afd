//! What the library promises alike for the guest and for the host: one suite by std's own topics, run on
//! [`cc::Host`], which is std, and on a machine. Where the two differ the test says why.

#[path = "fs/mod.rs"]
mod files;
mod instance;
#[allow(dead_code)]
#[path = "../machine/support.rs"]
mod support;

use std::path::Path;

use cc::fs::{FileTimes, Fs, Permissions, raw_os_error};

/// Declares each test for every place: on the host, and twice on the machine that all share.
macro_rules! on_both {
    ($($topic:ident: $($name:ident)*;)*) => {
        mod host {
            $(mod $topic {
                $(#[test]
                fn $name() {
                    let (base, kind) = (std::env::temp_dir(), crate::files::Kind::Host);
                    let at = crate::files::Place::new(&cc::Host, &base, &crate::sh_on_host, kind);
                    crate::files::$topic::$name(&at);
                })*
            })*
        }
        /// In the guest's memory.
        mod guest {
            $(mod $topic {
                $(#[test]
                fn $name() {
                    crate::files::$topic::$name(&crate::in_guest("/tmp"));
                })*
            })*
        }
        /// On the machine's root, which is a file system of ours.
        mod root {
            $(mod $topic {
                $(#[test]
                fn $name() {
                    crate::files::$topic::$name(&crate::in_guest("/conformance"));
                })*
            })*
        }
    };
}

fn in_guest(base: &str) -> files::Place<'static, cc::Instance> {
    files::Place::new(support::shared(), Path::new(base), &sh_in_guest, files::Kind::Machine)
}

fn sh_on_host(dir: &Path, script: &str) -> String {
    let out = std::process::Command::new("sh").args(["-c", script]).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

fn sh_in_guest(dir: &Path, script: &str) -> String {
    let out = support::shared().command("sh").args(["-c", script]).current_dir(dir).output().expect("sh");
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).expect("text").trim().to_owned()
}

files::all!(on_both);
