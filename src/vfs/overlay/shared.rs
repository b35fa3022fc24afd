//! A map that forks have in common until one of them changes it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

/// An ordered map. An empty one takes no memory, and a clone of any costs the same: the entries are copied at the
/// first change, and only while somebody else has them too.
#[derive(Debug)]
pub(super) struct SharedMap<K: 'static, V: 'static>(Option<Arc<BTreeMap<K, V>>>);

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap(None)
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap(self.0.clone())
    }
}

impl<K, V> From<BTreeMap<K, V>> for SharedMap<K, V> {
    fn from(map: BTreeMap<K, V>) -> Self {
        SharedMap((!map.is_empty()).then(|| Arc::new(map)))
    }
}

impl<K, V> Deref for SharedMap<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        self.0.as_deref().unwrap_or(const { &BTreeMap::new() })
    }
}

impl<K: Clone + Ord, V: Clone> SharedMap<K, V> {
    /// The map, ours alone.
    pub(super) fn edit(&mut self) -> &mut BTreeMap<K, V> {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}
