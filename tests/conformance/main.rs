//! What the library promises alike for the guest and for the host: one suite by std's own topics, run on
//! [`cc::Host`], which is std, and on a machine. Where the two differ the test says why.

#[path = "fs/mod.rs"]
mod files;
#[allow(dead_code)]
#[path = "../machine/support.rs"]
mod support;

use std::path::Path;

use cc::fs::{File, FileTimes, Fs, Permissions, raw_os_error};

/// Declares each test twice: on the host and on the machine that all share.
macro_rules! on_both {
    ($($topic:ident: $($name:ident)*;)*) => {
        mod host {
            $(mod $topic {
                $(#[test]
                fn $name() {
                    crate::files::$topic::$name(&crate::files::Place::new(&cc::Host, &crate::sh_on_host));
                })*
            })*
        }
        mod guest {
            $(mod $topic {
                $(#[test]
                fn $name() {
                    let on = crate::support::shared();
                    crate::files::$topic::$name(&crate::files::Place::new(on, &crate::sh_in_guest));
                })*
            })*
        }
    };
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
