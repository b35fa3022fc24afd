//! The container: sections with kind, version and instance, and a checksum over all of them.
//!
//! All numbers are little-endian. Magic (8 bytes), format `u32`, number of sections `u32`; then each
//! section as kind `u16`, version `u16`, instance `u16`, reserved `u16` (zero), length `u64` and as
//! many bytes of postcard; then the SHA-256 of everything before.
//!
//! A [`Reader`] exists only of bytes whose checksum and structure are right; its sections are then
//! taken one by one, and [`Reader::finish`] refuses those that nobody took. Structure is checked by
//! arithmetic alone, so a hostile length costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{Saved, StateError};

/// The format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Most bytes of a container.
pub const MAX_BYTES: usize = 64 << 20;
/// Most sections of a container.
pub const MAX_SECTIONS: usize = 4096;

pub(super) const MAGIC: [u8; 8] = *b"CCSTATE\0";
const HEADER: usize = 16;
const SECTION_HEADER: usize = 16;
const CHECKSUM: usize = 32;
/// Where the number of sections lies.
const COUNT: std::ops::Range<usize> = 12..16;

/// A container that is being written.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    sections: BTreeSet<(u16, u16)>,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A container without sections.
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(4096);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        Self { bytes, sections: BTreeSet::new() }
    }

    /// Adds the section of `value`, the `instance`th of its kind.
    ///
    /// # Errors
    /// What [`Reader::take`] would refuse: [`StateError::Invalid`] when the value exceeds its caps,
    /// [`StateError::Unexpected`] when the section is there already, [`StateError::TooLarge`] when
    /// it or the container would become too large. The container is as it was then.
    pub fn put<T: Saved>(&mut self, instance: u16, value: &T) -> Result<(), StateError> {
        value.check()?;
        let body =
            postcard::to_stdvec(value).map_err(|_| StateError::Invalid { what: "it cannot be written" })?;
        let total = self.bytes.len() + SECTION_HEADER + body.len() + CHECKSUM;
        if body.len() > T::MAX_BYTES || total > MAX_BYTES || self.sections.len() >= MAX_SECTIONS {
            return Err(StateError::TooLarge);
        }
        if !self.sections.insert((T::KIND, instance)) {
            return Err(StateError::Unexpected { kind: T::KIND });
        }
        for half in [T::KIND, T::VERSION, instance, 0] {
            self.bytes.extend_from_slice(&half.to_le_bytes());
        }
        self.bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(&body);
        Ok(())
    }

    /// The container, with its checksum.
    pub fn finish(mut self) -> Vec<u8> {
        // `put` keeps the number small.
        self.bytes[COUNT].copy_from_slice(&(self.sections.len() as u32).to_le_bytes());
        let sum = Sha256::digest(&self.bytes);
        self.bytes.extend_from_slice(&sum);
        self.bytes
    }
}

#[derive(Debug, Clone, Copy)]
struct Section<'a> {
    version: u16,
    body: &'a [u8],
}

/// A container whose checksum and structure are right.
#[derive(Debug)]
pub struct Reader<'a> {
    /// By kind and instance; those not yet taken.
    sections: BTreeMap<(u16, u16), Section<'a>>,
}

impl<'a> Reader<'a> {
    /// Checks the whole of `bytes`.
    ///
    /// # Errors
    /// [`StateError::NotState`], [`StateError::Format`], [`StateError::Truncated`],
    /// [`StateError::Checksum`]; of a container that was made up, also [`StateError::TooLarge`],
    /// [`StateError::Unexpected`] for a section that is there twice, and [`StateError::Invalid`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, StateError> {
        if bytes.len() > MAX_BYTES {
            return Err(StateError::TooLarge);
        }
        let start = bytes.len().min(MAGIC.len());
        if bytes[..start] != MAGIC[..start] || bytes.is_empty() {
            return Err(StateError::NotState);
        }
        let mut rest = bytes.get(MAGIC.len()..).ok_or(StateError::Truncated)?;
        let found = take_u32(&mut rest)?;
        if found != FORMAT {
            return Err(StateError::Format { found });
        }
        if bytes.len() < HEADER + CHECKSUM {
            return Err(StateError::Truncated);
        }
        let (body, sum) = bytes.split_at(bytes.len() - CHECKSUM);
        if Sha256::digest(body).as_slice() != sum {
            // The lengths in it are not to be believed, but where they point beyond the end, that is
            // the likelier reason.
            return match sections(&bytes[MAGIC.len() + 4..]) {
                Err(StateError::Truncated) => Err(StateError::Truncated),
                _ => Err(StateError::Checksum),
            };
        }
        let (sections, rest) = sections(&body[MAGIC.len() + 4..])?;
        if !rest.is_empty() {
            return Err(StateError::Invalid { what: "bytes after the last section" });
        }
        Ok(Self { sections })
    }

    /// Whether there is a section of this kind and instance that was not taken yet.
    pub fn has(&self, kind: u16, instance: u16) -> bool {
        self.sections.contains_key(&(kind, instance))
    }

    /// The version of a section that was not taken yet; to choose among the types that read it.
    pub fn version(&self, kind: u16, instance: u16) -> Option<u16> {
        self.sections.get(&(kind, instance)).map(|section| section.version)
    }

    /// Takes a section as a `T`. Its values are within their caps, and otherwise whatever the bytes
    /// say.
    ///
    /// # Errors
    /// [`StateError::Missing`], [`StateError::Version`], [`StateError::TooLarge`] for more bytes than
    /// the kind may have, and [`StateError::Invalid`] when the bytes are no `T`, or more than one.
    pub fn take<T: Saved>(&mut self, instance: u16) -> Result<T, StateError> {
        let kind = T::KIND;
        let section = self.sections.remove(&(kind, instance)).ok_or(StateError::Missing { kind })?;
        if section.version != T::VERSION {
            return Err(StateError::Version { kind, found: section.version, expected: T::VERSION });
        }
        if section.body.len() > T::MAX_BYTES {
            return Err(StateError::TooLarge);
        }
        let (value, rest) = postcard::take_from_bytes::<T>(section.body)
            .map_err(|_| StateError::Invalid { what: "a section that does not decode" })?;
        if !rest.is_empty() {
            return Err(StateError::Invalid { what: "bytes after the value of a section" });
        }
        value.check()?;
        Ok(value)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`StateError::Unexpected`] for a section that nobody took: this version would lose it.
    pub fn finish(self) -> Result<(), StateError> {
        match self.sections.into_keys().next() {
            Some((kind, _)) => Err(StateError::Unexpected { kind }),
            None => Ok(()),
        }
    }
}

type Sections<'a> = BTreeMap<(u16, u16), Section<'a>>;

/// The sections that `rest` announces, and what follows them.
fn sections(mut rest: &[u8]) -> Result<(Sections<'_>, &[u8]), StateError> {
    let count = take_u32(&mut rest)?;
    if count as usize > MAX_SECTIONS {
        return Err(StateError::TooLarge);
    }
    let mut sections = BTreeMap::new();
    for _ in 0..count {
        let [kind, version, instance, reserved] =
            [take_u16(&mut rest)?, take_u16(&mut rest)?, take_u16(&mut rest)?, take_u16(&mut rest)?];
        let length = u64::from_le_bytes(take_array(&mut rest)?);
        let length = usize::try_from(length).map_err(|_| StateError::Truncated)?;
        let (body, after) = rest.split_at_checked(length).ok_or(StateError::Truncated)?;
        rest = after;
        if reserved != 0 {
            return Err(StateError::Invalid { what: "a section with reserved bits" });
        }
        if sections.insert((kind, instance), Section { version, body }).is_some() {
            return Err(StateError::Unexpected { kind });
        }
    }
    Ok((sections, rest))
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], StateError> {
    let (array, after) = rest.split_first_chunk::<N>().ok_or(StateError::Truncated)?;
    *rest = after;
    Ok(*array)
}

fn take_u16(rest: &mut &[u8]) -> Result<u16, StateError> {
    take_array(rest).map(u16::from_le_bytes)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, StateError> {
    take_array(rest).map(u32::from_le_bytes)
}
