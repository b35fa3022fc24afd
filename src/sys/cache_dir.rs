//! Where this crate keeps what it fetches.

use std::path::PathBuf;

/// Where things are kept unless a caller says otherwise: what `CC_CACHE_DIR` names, else the user's cache directory.
pub fn locate() -> Option<PathBuf> {
    from_environment().or_else(of_user)
}

/// The directory that `CC_CACHE_DIR` names.
pub(crate) fn from_environment() -> Option<PathBuf> {
    std::env::var_os("CC_CACHE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The user's cache directory; `None` for a user without a home.
pub(crate) fn of_user() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "cc-vm").map(|dirs| dirs.cache_dir().to_owned())
}
