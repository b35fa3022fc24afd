//! Credentials: what the caller gave, or what `docker login` left in Docker's `config.json`.
//!
//! The file is read and its helper programs are run here and not by a library, because a helper must not be able to
//! hold up a pull for ever, and what it prints must not get into an error.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::{DecodePaddingMode, general_purpose::STANDARD};

use super::Error;

const MAX_CONFIG: u64 = 4 << 20;
const MAX_ANSWER: u64 = 1 << 20;
/// A helper may have to ask a person to unlock something.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// The name that Docker Hub's credentials go by.
const HUB: &str = "https://index.docker.io/v1/";

/// A user and password, or a token that stands for them. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// To be exchanged for an access token.
    Identity(String),
}

impl Credentials {
    /// The value of an `Authorization` header; `None` for what is no password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Credentials::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Credentials::Identity(_) => None,
        }
    }

    fn new(user: String, password: String) -> Credentials {
        if user == "<token>" {
            Credentials::Identity(password)
        } else {
            Credentials::Password { user, password }
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: HashMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Clone, Default, serde::Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Looks up what is stored for `registry` (`docker.io` or `host[:port]`) in `dir/config.json`. May run a helper
/// program, for at most a minute.
///
/// # Errors
/// [`Error::Credentials`] where something is stored that cannot be had.
pub(super) fn stored(dir: &Path, registry: &str) -> Result<Option<Credentials>, Error> {
    let failed = |reason: String| Error::Credentials { registry: registry.to_owned(), reason };
    let path = dir.join("config.json");
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.kind() == io::ErrorKind::NotADirectory => {
            return Ok(None);
        }
        Err(e) => return Err(failed(format!("{}: {e}", path.display()))),
    }
    // What the parser says could quote a password.
    let config: Config =
        serde_json::from_slice(&text).map_err(|_| failed(format!("{} is malformed", path.display())))?;
    let key = if registry == "docker.io" { HUB } else { registry };
    let helper = config.cred_helpers.get(key).or_else(|| config.cred_helpers.get(registry));
    if let Some(helper) = helper {
        return ask(helper, key).map_err(failed);
    }
    let stored = config.auths.iter().find(|(name, _)| *name == key);
    let stored = stored.or_else(|| config.auths.iter().find(|(name, _)| host_of(name) == host_of(key)));
    if let Some((_, auth)) = stored
        && let Some(found) = auth.credentials().map_err(failed)?
    {
        return Ok(Some(found));
    }
    match &config.creds_store {
        Some(helper) => ask(helper, key).map_err(failed),
        None => Ok(None),
    }
}

/// `https://registry.example.com/v1/` and `registry.example.com` are one registry.
fn host_of(name: &str) -> &str {
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    name.split('/').next().unwrap_or(name)
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, String> {
        let some = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        if let Some(token) = some(&self.identitytoken) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let Some(encoded) = some(&self.auth) {
            let engine = GeneralPurpose::new(
                &base64::alphabet::STANDARD,
                GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
            );
            let decoded = engine.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let (user, password) = decoded
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .ok_or("what is stored for it in config.json is malformed")?;
            return Ok(Some(Credentials::new(user.into(), password.trim_end_matches('\0').into())));
        }
        match (some(&self.username), some(&self.password)) {
            (Some(user), Some(password)) => Ok(Some(Credentials::new(user, password))),
            _ => Ok(None),
        }
    }
}

/// Runs `docker-credential-<helper> get`.
fn ask(helper: &str, key: &str) -> Result<Option<Credentials>, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(format!("{helper:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{program} cannot be run: {e}"))?;
    // The key is short: a pipe takes it whole.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(key.as_bytes());
    }
    let stdout = child.stdout.take();
    let (send, answer) = std::sync::mpsc::channel();
    // Not joined: a child of the helper's may hold the pipe open longer than the helper lives.
    let reader = std::thread::Builder::new().name("cc-credentials".into()).spawn(move || {
        let mut answer = Vec::new();
        let read = stdout.map(|out| out.take(MAX_ANSWER).read_to_end(&mut answer));
        let _ = send.send(read.is_some_and(|result| result.is_ok()).then_some(answer));
    });
    let deadline = Instant::now() + HELPER_TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if reader.is_ok() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let answer = (status, answer.recv_timeout(Duration::from_secs(1)).ok().flatten());
    match answer {
        (None, _) => Err(format!("{program} did not end within {} s", HELPER_TIMEOUT.as_secs())),
        (Some(status), Some(text)) if status.success() => {
            let answer: HelperAnswer =
                serde_json::from_slice(&text).map_err(|_| format!("{program} gave a malformed answer"))?;
            Ok(Some(Credentials::new(answer.username, answer.secret)))
        }
        (Some(_), Some(text)) if String::from_utf8_lossy(&text).contains("credentials not found") => Ok(None),
        (Some(status), _) => Err(format!("{program} failed ({status})")),
    }
}
