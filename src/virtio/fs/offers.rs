//! Bytes that host and guest give each other by way of a file, without the guest's processor carrying them.
//!
//! An [`Offer`] is a file in the roots of file systems that no listing shows. The guest's agent opens it by its name,
//! which nobody else can guess, and copies from it or to it with `copy_file_range(2)`: that is one request, which the
//! session carries out by writing the bytes to the other file itself, or reading them from there. The guest's kernel
//! writes out what it holds of a file before, and drops what it has cached of a changed one, as it does for every such
//! copy. For files of which only the guest knows, its agent reads the offer. It can be neither read nor written
//! otherwise; it is gone with the [`Offer`], and a clone does not have it.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::vfs::{Attr, Entry, NodeId, mode};

/// Offers at once.
const MAX_OFFERS: usize = 64;
/// Nodes from here on are offers. File systems count theirs from 1.
const FIRST_NODE: u64 = 1 << 62;

/// The offers of one file system.
#[derive(Default)]
pub(super) struct Offers(Mutex<Table>);

#[derive(Default)]
struct Table {
    next: u64,
    slots: Vec<Option<Slot>>,
}

struct Slot {
    name: CString,
    node: NodeId,
    content: Content,
}

#[derive(Clone)]
enum Content {
    /// To be copied from, or read.
    Source(Arc<Vec<u8>>),
    /// To be copied to.
    Sink(Arc<Mutex<Sink>>),
}

/// Bytes that the guest has put into an offer.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) bytes: Vec<u8>,
    pub(super) most: usize,
}

pub(super) fn lock(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(|e| e.into_inner())
}

impl Offers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn find<T>(&self, which: impl Fn(&Slot) -> bool, take: impl FnOnce(&Slot) -> T) -> Option<T> {
        self.table().slots.iter().flatten().find(|slot| which(slot)).map(take)
    }

    /// The file that has this name in the root.
    pub(super) fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<Entry> {
        if parent != NodeId::ROOT {
            return None;
        }
        let found = self.find(|slot| slot.name.to_bytes() == name, |slot| (slot.node, attr(slot)));
        // The name may be another offer's soon.
        let now = Duration::ZERO;
        found.map(|(node, attr)| Entry { node, generation: 0, attr, attr_ttl: now, entry_ttl: now })
    }

    pub(super) fn attr(&self, node: NodeId) -> Option<Attr> {
        (node.0 >= FIRST_NODE).then(|| self.find(|slot| slot.node == node, attr))?
    }

    fn content(&self, node: NodeId) -> Option<Content> {
        (node.0 >= FIRST_NODE).then(|| self.find(|slot| slot.node == node, |slot| slot.content.clone()))?
    }

    pub(super) fn source(&self, node: NodeId) -> Option<Arc<Vec<u8>>> {
        match self.content(node)? {
            Content::Source(bytes) => Some(bytes),
            Content::Sink(_) => None,
        }
    }

    pub(super) fn sink(&self, node: NodeId) -> Option<Arc<Mutex<Sink>>> {
        match self.content(node)? {
            Content::Source(_) => None,
            Content::Sink(sink) => Some(sink),
        }
    }
}

fn attr(slot: &Slot) -> Attr {
    let (size, permissions) = match &slot.content {
        Content::Source(bytes) => (bytes.len() as u64, 0o400),
        Content::Sink(sink) => (lock(sink).bytes.len() as u64, 0o200),
    };
    Attr {
        ino: slot.node.0,
        size,
        blocks: size.div_ceil(512),
        mode: mode::FILE | permissions,
        nlink: 1,
        blksize: 4096,
        ..Attr::default()
    }
}

/// A file that a guest can copy from or to, for as long as this lives.
pub struct Offer {
    /// Where it is: in which file systems, and which of their offers it is.
    places: Vec<(Arc<Offers>, usize)>,
    name: CString,
    content: Content,
}

impl Offer {
    /// `None` where there are too many already.
    pub(super) fn source(offers: &Arc<Offers>, bytes: Arc<Vec<u8>>) -> Option<Self> {
        Self::new(offers, Content::Source(bytes))
    }

    /// Takes at most `most` bytes. `None` where there are too many already.
    pub(super) fn sink(offers: &Arc<Offers>, most: usize) -> Option<Self> {
        Self::new(offers, Content::Sink(Arc::new(Mutex::new(Sink { bytes: Vec::new(), most }))))
    }

    fn new(offers: &Arc<Offers>, content: Content) -> Option<Self> {
        let name = CString::new(format!(".cc-{:016x}", crate::sys::random::u64()?)).ok()?;
        let mut offer = Self { places: Vec::new(), name, content };
        offer.put_into(offers).then_some(offer)
    }

    /// Has another file system have it too. False where there are too many already, or one of that name.
    pub(super) fn put_into(&mut self, offers: &Arc<Offers>) -> bool {
        let mut table = offers.table();
        let free = table.slots.iter().position(Option::is_none).unwrap_or(table.slots.len());
        if free >= MAX_OFFERS || table.slots.iter().flatten().any(|slot| slot.name == self.name) {
            return false;
        }
        if free == table.slots.len() {
            table.slots.push(None);
        }
        let node = NodeId(FIRST_NODE + table.next);
        table.next += 1;
        if let Some(slot) = table.slots.get_mut(free) {
            *slot = Some(Slot { name: self.name.clone(), node, content: self.content.clone() });
        }
        self.places.push((offers.clone(), free));
        true
    }

    /// Its name in the root of each file system that has it.
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Takes out what the guest has copied to it.
    pub fn take(&self) -> Vec<u8> {
        match &self.content {
            Content::Source(_) => Vec::new(),
            Content::Sink(sink) => std::mem::take(&mut lock(sink).bytes),
        }
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        for (offers, slot) in &self.places {
            if let Some(slot) = offers.table().slots.get_mut(*slot) {
                *slot = None;
            }
        }
    }
}
