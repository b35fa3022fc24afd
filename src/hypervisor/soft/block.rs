//! The cache of decoded blocks.
//!
//! A block is a run of instructions that starts at one guest-physical address and lies in one page
//! (its last instruction may reach into the next). Blocks are found by physical address and code
//! size, so that all mappings of a page share them; each remembers where it went last, so that
//! hot paths go from block to block without a look-up. A compiling tier would hang its code on
//! [`Block`] and be entered in place of `ops`.
//!
//! A block dies when a byte of its pages is written. Its slot is reused only from the run loop,
//! between blocks, so a running block is never freed under the processor.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::op::Op;

/// Number of a block in the cache.
pub(super) type BlockId = u32;

/// Where a block went when it last ended: valid while `generation` is the TLB's and the cache's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Link {
    pub(super) rip: u64,
    pub(super) generation: u64,
    pub(super) block: BlockId,
}

/// Decoded instructions.
pub(super) struct Block {
    pub(super) ops: Box<[Op]>,
    /// Length in bytes of all instructions.
    pub(super) len: u32,
    /// RAM page of the first byte.
    pub(super) page: u32,
    /// RAM page that the last instruction reaches into.
    pub(super) page2: Option<u32>,
    key: u64,
    pub(super) links: [Link; 2],
}

/// At most this many blocks, and this many operations in all of them; then the cache starts afresh.
/// Bounds host memory to some 200 MiB whatever the guest does.
const MAX_BLOCKS: usize = 1 << 18;
const MAX_OPERATIONS: usize = 4 << 20;

#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(b as u64);
        }
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(v as u64);
    }
    fn write_u64(&mut self, v: u64) {
        let h = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = h ^ h >> 29;
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

const JUMP_ENTRIES: usize = 4096;

/// All blocks of one vCPU.
pub(super) struct BlockCache {
    blocks: Vec<Option<Box<Block>>>,
    free: Vec<BlockId>,
    by_key: Map<u64, BlockId>,
    by_page: Map<u32, Vec<BlockId>>,
    /// Recent look-ups by linear address.
    jumps: Box<[Link]>,
    /// Operations in all blocks.
    operations: usize,
    /// At most this many blocks.
    pub(super) limit: usize,
    /// Grows whenever a block dies.
    pub(super) generation: u32,
}

impl BlockCache {
    pub(super) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            by_key: Map::default(),
            by_page: Map::default(),
            jumps: vec![Link::default(); JUMP_ENTRIES].into_boxed_slice(),
            operations: 0,
            limit: MAX_BLOCKS,
            generation: 1,
        }
    }

    /// The key of the block at `gpa` for 64-bit (`long`) or 32-bit code.
    pub(super) fn key(gpa: u64, long: bool) -> u64 {
        gpa << 1 | long as u64
    }

    #[inline(always)]
    pub(super) fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize).and_then(|b| b.as_deref())
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, id: BlockId) -> Option<&mut Block> {
        self.blocks.get_mut(id as usize).and_then(|b| b.as_deref_mut())
    }

    #[inline(always)]
    pub(super) fn find_jump(&self, rip: u64, generation: u64) -> Option<BlockId> {
        let e = &self.jumps[jump_index(rip)];
        (e.rip == rip && e.generation == generation).then_some(e.block)
    }

    pub(super) fn remember_jump(&mut self, rip: u64, generation: u64, block: BlockId) {
        self.jumps[jump_index(rip)] = Link { rip, generation, block };
    }

    pub(super) fn find(&self, key: u64) -> Option<BlockId> {
        self.by_key.get(&key).copied()
    }

    /// Adds a block. The caller has marked its pages as code.
    pub(super) fn insert(
        &mut self,
        key: u64,
        ops: Vec<Op>,
        len: u32,
        page: u32,
        page2: Option<u32>,
    ) -> BlockId {
        if self.by_key.len() >= self.limit || self.operations >= MAX_OPERATIONS {
            self.clear();
        }
        self.operations += ops.len();
        let block =
            Box::new(Block { ops: ops.into_boxed_slice(), len, page, page2, key, links: Default::default() });
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = Some(block);
                id
            }
            None => {
                self.blocks.push(Some(block));
                (self.blocks.len() - 1) as BlockId
            }
        };
        self.by_key.insert(key, id);
        self.by_page.entry(page).or_default().push(id);
        if let Some(page2) = page2 {
            self.by_page.entry(page2).or_default().push(id);
        }
        id
    }

    /// Drops every block that has bytes in RAM page `page`.
    pub(super) fn drop_page(&mut self, page: u32) {
        let Some(ids) = self.by_page.remove(&page) else { return };
        self.generation = self.generation.wrapping_add(1);
        for id in ids {
            let Some(block) = self.blocks[id as usize].take() else { continue };
            self.by_key.remove(&block.key);
            self.operations -= block.ops.len();
            for other in [Some(block.page), block.page2].into_iter().flatten() {
                if other != page
                    && let Some(list) = self.by_page.get_mut(&other)
                {
                    list.retain(|&x| x != id);
                }
            }
            self.free.push(id);
        }
    }

    /// How many blocks there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Drops all blocks.
    pub(super) fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.operations = 0;
        self.blocks.clear();
        self.free.clear();
        self.by_key.clear();
        self.by_page.clear();
    }
}

#[inline(always)]
fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMP_ENTRIES - 1)
}
