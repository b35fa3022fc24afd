//! What a client may be told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Platform;
use super::credentials::Credentials;

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullPolicy {
    /// Only for images that are not in the store.
    #[default]
    IfNotPresent,
    /// Every time, so that a tag means what it means now. Layers that are in the store are not fetched again.
    Always,
    /// Never: what is not in the store is an error.
    Never,
}

/// How far one blob has come.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Bytes that are here.
    pub current: u64,
    /// Bytes in all.
    pub total: u64,
    /// What is fetched, for people.
    pub name: &'a str,
    /// Which of the image's missing layers, from 0.
    pub index: usize,
    /// How many layers of the image are missing.
    pub count: usize,
}

pub(super) type OnProgress = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) store: PathBuf,
    pub(super) platform: Platform,
    pub(super) policy: PullPolicy,
    pub(super) credentials: Option<Credentials>,
    /// Directory with Docker's `config.json`.
    pub(super) docker_config: Option<PathBuf>,
    pub(super) plain_http: Vec<String>,
    /// For each registry the URLs to ask before it.
    pub(super) mirrors: BTreeMap<String, Vec<String>>,
    pub(super) progress: Option<OnProgress>,
    pub(super) no_progress: Duration,
    pub(super) retries: u32,
    /// The longest that a server may make us wait.
    pub(super) max_wait: Duration,
    pub(super) parallel: usize,
    /// Most bytes that a layer may unpack to.
    pub(super) max_layer: u64,
}

impl Options {
    pub(super) fn new(store: PathBuf) -> Options {
        let home = || Some(directories::BaseDirs::new()?.home_dir().join(".docker"));
        let named = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Options {
            store,
            platform: Platform::guest(),
            policy: PullPolicy::default(),
            credentials: None,
            docker_config: named.or_else(home),
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            progress: None,
            no_progress: Duration::from_secs(30),
            retries: 5,
            max_wait: Duration::from_secs(120),
            parallel: 3,
            max_layer: 64 << 30,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("store", &self.store)
            .field("platform", &self.platform)
            .field("policy", &self.policy)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}
