//! A session written down and taken up again.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::Forked;
use super::ledger::Ledger;
use super::session::{Caching, Session};
use crate::state::files::{FileClient, FileSystem};
use crate::vfs::saved::{LoadError, Loader, Saver};

impl Forked {
    /// Writes the file system and what the client holds of it.
    ///
    /// # Errors
    /// The host's.
    pub fn save(&self, tag: &str, to: &mut Saver) -> io::Result<(FileClient, FileSystem)> {
        let session = &self.0;
        let mut client = session.ledger().save();
        client.tag = tag.to_owned();
        client.minor = session.minor.load(Ordering::SeqCst);
        client.shared = session.caching == Caching::Shared;
        Ok((client, session.fs.save(to)?))
    }

    /// Takes up what was written.
    ///
    /// # Errors
    /// Any [`LoadError`].
    pub fn load(client: &FileClient, fs: FileSystem, from: &Loader) -> Result<Self, LoadError> {
        let caching = if client.shared { Caching::Shared } else { Caching::Private };
        Ok(Self(Arc::new(Session {
            fs: from.file_system(fs)?,
            caching,
            minor: AtomicU32::new(client.minor),
            ledger: Mutex::new(Ledger::load(client)),
            offers: Arc::default(),
        })))
    }
}
