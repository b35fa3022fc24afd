//! Digests: names of content by what it is. Only a checked one ever becomes part of a path or URL.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256, SHA512};

use super::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A digest such as `sha256:…`, well-formed by construction: a known algorithm and lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The hexadecimal digits without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// A name for a file: no separators, nothing but letters, digits and a dash.
    pub(super) fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }

    pub(super) fn algorithm_name(&self) -> &'static str {
        self.algorithm.name()
    }

    pub(super) fn from_file_name(name: &str) -> Option<Digest> {
        let (algorithm, hex) = name.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    /// Short, for people.
    pub(super) fn short(&self) -> &str {
        self.hex.get(..12).unwrap_or(&self.hex)
    }

    /// A hasher for a new SHA-256 digest.
    pub(super) fn sha256() -> Hasher {
        Hasher::new(Algorithm::Sha256)
    }

    /// A hasher of the same algorithm.
    pub(super) fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }

    /// Whether `bytes` have this digest; the one they have if not.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), Digest> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        let found = hasher.finish();
        if found == *self { Ok(()) } else { Err(found) }
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest, Error> {
        let bad = |reason: &str| {
            let shown: String = text.chars().take(200).collect();
            Error::malformed(format!("the digest {shown:?}"), reason)
        };
        let (name, hex) = text.split_once(':').ok_or_else(|| bad("no algorithm"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(bad("an algorithm other than sha256 and sha512")),
        };
        if hex.len() != algorithm.digits() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad("not as many lower-case hexadecimal digits as its algorithm has"));
        }
        Ok(Digest { algorithm, hex: hex.to_owned() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest piece by piece.
pub(super) struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        let context = Context::new(match algorithm {
            Algorithm::Sha256 => &SHA256,
            Algorithm::Sha512 => &SHA512,
        });
        Hasher { algorithm, context }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(super) fn finish(self) -> Digest {
        let digest = self.context.finish();
        let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Digest { algorithm: self.algorithm, hex }
    }
}
