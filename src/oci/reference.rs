//! References: what a caller writes to name an image.

use std::fmt;
use std::str::FromStr;

use oci_spec::distribution;

use super::{Digest, Error};

const MAX_LENGTH: usize = 1024;

/// A parsed reference: registry, repository, and a tag or digest or both. What is left out is Docker's default:
/// registry `docker.io`, there `library/`, tag `latest`. With a digest the tag is only a label.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as written, `docker.io` by default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, such as `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Where the registry is asked: Docker Hub's is not at its name.
    pub(super) fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }

    /// What a registry is asked for.
    pub(super) fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        let bad =
            |reason: String| Error::Reference { reference: text.chars().take(MAX_LENGTH).collect(), reason };
        if text.len() > MAX_LENGTH {
            return Err(bad("it is too long".into()));
        }
        let parsed: distribution::Reference =
            text.parse().map_err(|e: distribution::ParseError| bad(e.to_string()))?;
        let digest = parsed.digest().map(str::parse).transpose().map_err(|e: Error| bad(e.to_string()))?;
        Ok(Reference {
            registry: parsed.registry().to_owned(),
            repository: parsed.repository().to_owned(),
            tag: parsed.tag().map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
