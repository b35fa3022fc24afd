//! The suite for files. Whoever includes it has `Fs`, `FileTimes`, `Permissions` and `raw_os_error` in scope,
//! and a shell at the place that is tested.

use std::path::{Path, PathBuf};

use super::{FileTimes, Fs, Permissions, raw_os_error};

pub(crate) mod copies;
pub(crate) mod dirs;
pub(crate) mod errors;
pub(crate) mod file;
pub(crate) mod links;
pub(crate) mod locks;
pub(crate) mod metadata;
pub(crate) mod open_options;
pub(crate) mod paths;
pub(crate) mod permissions;

/// Runs a script in a directory of the place and gives what it wrote.
pub(crate) type Shell<'a> = &'a (dyn Fn(&Path, &str) -> String + Sync);

/// Somewhere to work on files: a directory of its own on the host or in a guest.
pub(crate) struct Place<'a, F: Fs + Sync> {
    pub(crate) on: &'a F,
    pub(crate) dir: PathBuf,
    shell: Shell<'a>,
    pub(crate) kind: Kind,
}

/// What a place is, where tests must know.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// std itself.
    Host,
    /// The agent, as a process of the host.
    #[allow(dead_code)] // one of the programs that include this has none
    Process,
    /// A machine of its own.
    #[allow(dead_code)] // likewise
    Machine,
}

impl<'a, F: Fs + Sync> Place<'a, F> {
    /// A directory of its own below `base`.
    pub(crate) fn new(on: &'a F, base: &Path, shell: Shell<'a>, kind: Kind) -> Self {
        let dir = base.join(on.temp_dir().expect("a directory").path().file_name().expect("a name"));
        on.create_dir_all(&dir).expect("a directory");
        Place { on, dir, shell, kind }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn sh(&self, script: &str) -> String {
        (self.shell)(&self.dir, script)
    }

    /// Makes a file.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        self.on.write(&path, content).expect(name);
        path
    }

    /// User and group that things are done as.
    pub(crate) fn user(&self) -> (u32, u32) {
        let ids = self.sh("id -u; id -g");
        let mut ids = ids.lines().map(|id| id.parse().expect("a number"));
        (ids.next().expect("a user"), ids.next().expect("a group"))
    }

    /// Names in a directory, sorted.
    pub(crate) fn names(&self, dir: impl AsRef<Path>) -> Vec<String> {
        let entries = self.on.read_dir(dir).expect("a directory");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl<F: Fs + Sync> Drop for Place<'_, F> {
    fn drop(&mut self) {
        let removed = self.on.remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            removed.expect("the directory goes");
        }
    }
}

/// Bytes that are not alike anywhere.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// Hands all tests to a macro, by topic.
macro_rules! all {
    ($each:ident) => {
        $each! {
            open_options: access_and_creation contradictions append_and_truncate create_new_is_exclusive
                mode_and_custom_flags;
            file: read_write_seek positions_are_shared_by_clones at_offsets lengths_and_holes large_content
                from_many_threads whole_files growing_and_special_files a_waiting_pipe_holds_up_nobody;
            metadata: of_each_kind times_and_numbers times_are_set;
            dirs: make_and_remove read_dir_is_complete_and_lazy many_entries remove_dir_all_stays_inside
                temp_dirs_go deep_trees_go;
            links: symbolic hard rename_replaces canonicalize_and_read_link;
            permissions: modes owners umask_is_022;
            locks: exclusive_and_shared_locks;
            paths: bytes_of_every_kind empty_long_and_nul relative_paths;
            copies: copy_keeps_content_and_mode trees_go_in_and_out archives_go_in_and_out holes_stay_holes;
            errors: every_errno messages_name_operation_and_path;
        }
    };
}
pub(crate) use all;
