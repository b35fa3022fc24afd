//! The host as a place where things are done, beside instances.

/// This process's own system: [`std::net`] behind the traits that [`Instance`](crate::Instance)
/// implements too, so that code can be written once for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host;
