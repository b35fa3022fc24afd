//! Platforms, and the choice of one out of an index.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use super::Error;

/// What an image is made for, in the words of its configuration: `linux`, `amd64`, and for some architectures a
/// variant such as `v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system, as Go names them.
    pub os: String,
    /// Architecture, as Go names them.
    pub architecture: String,
    /// Variant of the architecture; `None` for any.
    pub variant: Option<String>,
}

impl Platform {
    /// What the machines of this crate run: `linux/amd64`, on every host.
    pub fn guest() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    /// Whether an image for `other` is one for this.
    pub(super) fn accepts(&self, other: &Platform) -> bool {
        let variant = match (&self.variant, &other.variant) {
            (None, _) => true,
            (Some(wanted), found) => {
                found.as_deref().unwrap_or(default_variant(&other.architecture)) == wanted
            }
        };
        self.os == other.os && self.architecture == other.architecture && variant
    }

    /// The entry for this platform: of several the one that asks least of the processor, then the first.
    pub(super) fn choose<'a>(&self, entries: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let fits = |entry: &&Descriptor| Platform::of(entry).is_some_and(|p| self.accepts(&p));
        let demands = |entry: &&Descriptor| {
            let platform = Platform::of(entry);
            let variant = platform.and_then(|p| p.variant).unwrap_or_default();
            // Newer variants of ARM are asked for as such; elsewhere a bare entry runs everywhere.
            if variant == default_variant(&self.architecture) { String::new() } else { variant }
        };
        entries.iter().filter(fits).min_by_key(demands)
    }

    /// What an entry of an index says of its platform.
    pub(super) fn of(entry: &Descriptor) -> Option<Platform> {
        let platform = entry.platform().as_ref()?;
        Some(Platform {
            os: platform.os().to_string(),
            architecture: platform.architecture().to_string(),
            variant: platform.variant().clone().filter(|v| !v.is_empty()),
        })
    }
}

fn default_variant(architecture: &str) -> &'static str {
    match architecture {
        "arm64" => "v8",
        "arm" => "v7",
        "amd64" => "v1",
        _ => "",
    }
}

impl Default for Platform {
    fn default() -> Self {
        Platform::guest()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// `os/architecture` or `os/architecture/variant`.
impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.len() <= 32
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(plain) {
            return Err(Error::Option {
                option: "platform",
                reason: format!("{text:?} is not like linux/amd64 or linux/arm/v7"),
            });
        }
        let part = |i: usize| parts.get(i).map(|p| (*p).to_owned());
        Ok(Platform {
            os: part(0).unwrap_or_default(),
            architecture: part(1).unwrap_or_default(),
            variant: part(2),
        })
    }
}
