//! Bytes that the host gives its guest by way of a file, without the guest's processor carrying them.
//!
//! An [`Offer`] is a file in the root of the file system that no listing shows. The guest's agent opens it by its name,
//! which nobody else can guess, and copies from it with `copy_file_range(2)`: that is one request, which the session
//! carries out by writing the bytes to the other file itself. The guest's kernel knows that the file has changed and
//! drops what it has cached of it, as it does for every such copy. The file can be copied from and not be read; it is
//! gone with the `Offer`, and a clone does not have it.

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
    bytes: Arc<Vec<u8>>,
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

    pub(super) fn bytes(&self, node: NodeId) -> Option<Arc<Vec<u8>>> {
        (node.0 >= FIRST_NODE).then(|| self.find(|slot| slot.node == node, |slot| slot.bytes.clone()))?
    }
}

fn attr(slot: &Slot) -> Attr {
    let size = slot.bytes.len() as u64;
    Attr {
        ino: slot.node.0,
        size,
        blocks: size.div_ceil(512),
        mode: mode::FILE | 0o400,
        nlink: 1,
        blksize: 4096,
        ..Attr::default()
    }
}

/// A file that a guest can copy from, for as long as this lives.
pub struct Offer {
    offers: Arc<Offers>,
    slot: usize,
    name: CString,
}

impl Offer {
    /// `None` where there are too many already.
    pub(super) fn new(offers: &Arc<Offers>, bytes: Arc<Vec<u8>>) -> Option<Self> {
        let mut table = offers.table();
        let free = table.slots.iter().position(Option::is_none).unwrap_or(table.slots.len());
        if free >= MAX_OFFERS {
            return None;
        }
        if free == table.slots.len() {
            table.slots.push(None);
        }
        let name = CString::new(format!(".cc-{:016x}-{free}", crate::sys::random::u64()?)).ok()?;
        let node = NodeId(FIRST_NODE + table.next);
        table.next += 1;
        if let Some(slot) = table.slots.get_mut(free) {
            *slot = Some(Slot { name: name.clone(), node, bytes });
        }
        Some(Self { offers: offers.clone(), slot: free, name })
    }

    /// Its name in the root of the file system.
    pub fn name(&self) -> &CStr {
        &self.name
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(slot) = self.offers.table().slots.get_mut(self.slot) {
            *slot = None;
        }
    }
}
