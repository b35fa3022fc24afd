//! Whether the Windows Hypervisor Platform may be used.

use crate::hypervisor::Unavailable;

/// An opened WHP. There is none in this version.
#[derive(Debug, Clone)]
pub enum System {}

impl System {
    /// Opens it.
    ///
    /// # Errors
    /// Always [`Unavailable::Platform`]: this version has nothing for it.
    pub fn open() -> Result<Self, Unavailable> {
        Err(Unavailable::Platform("WHP"))
    }
}
