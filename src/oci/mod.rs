//! Images: references, registries, and a store of layers that are never extracted.
//!
//! [`Client::pull`] gives an [`Image`]: its configuration, and its layers as [`vfs`](crate::vfs) reads them. The ways
//! there:
//! - `reference`, `platform`, `digest`, `manifest`: what is asked for and what is answered, checked.
//! - `http`, `auth`, `credentials`, `registry`: talking to a registry and its mirrors.
//! - `archive`, `load`, `export`: images from and to files.
//! - `pull`, `unpack`: documents, then layers, downloaded and unpacked in one pass.
//! - `fs_snapshot`: a parent and a layer of changes, by a key.
//! - `store`: layers by diff-id, records by reference; shared by processes, safe against being killed.
//!
//! Everything that comes from a registry or an archive is taken as hostile: sizes are capped, digests verified, and no
//! name from an image becomes a path of the host. Errors ([`Error`]) say what to do next and never show credentials.

mod archive;
mod auth;
mod client;
mod credentials;
mod digest;
mod error;
mod export;
mod fs_snapshot;
mod http;
mod image;
mod load;
mod manifest;
mod options;
mod platform;
mod pull;
mod reference;
mod registry;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

pub use client::{Client, ClientBuilder, Entry};
pub use digest::Digest;
pub use error::Error;
pub(crate) use fs_snapshot::{Base, Changes};
pub use fs_snapshot::{FileSystemSnapshot, FileSystemSnapshotEntry, Parent};
pub use image::Image;
pub use manifest::ImageConfig;
pub use options::{Progress, PullPolicy};
pub use platform::Platform;
pub use reference::Reference;
pub use store::Freed;
