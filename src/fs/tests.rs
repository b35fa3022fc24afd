//! The conformance suite of this module against the agent as a process of the host, and what happens around the end of
//! workers and machines.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::agent::files::Files;
use crate::agent::testing::HostAgent;

#[path = "../../tests/conformance/fs/mod.rs"]
mod conformance;

use conformance::{Kind, Place};

fn files(agent: &HostAgent) -> FileSystem {
    FileSystem::of_guest(Arc::new(Files::new(agent.client.clone(), agent.ports())), None)
}

fn sh(dir: &Path, script: &str) -> String {
    let out = std::process::Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A test of the suite, which also proves that the agent is alive afterwards and ends well.
macro_rules! suite {
    ($($topic:ident: $($name:ident)*;)*) => {
        $(mod $topic {
            $(#[test]
            fn $name() {
                super::with_agent(|fs| {
                    let place = super::Place::new(fs, &std::env::temp_dir(), &super::sh, super::Kind::Process);
                    super::conformance::$topic::$name(&place);
                });
            })*
        })*
    };
}
conformance::all!(suite);

fn with_agent(test: impl FnOnce(&FileSystem)) {
    let mut agent = HostAgent::start();
    test(&files(&agent));
    agent.client.ping(std::time::Duration::from_secs(30)).unwrap();
    assert_eq!(agent.stop(), Some(0));
}
