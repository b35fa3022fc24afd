//! The file systems as a kernel sees them: mounted on the host through `/dev/fuse`, under the test suites of others.

#![cfg(target_os = "linux")]

#[path = "../../examples/vfs_mount/convert.rs"]
mod convert;
mod foreign;
mod scale;
#[path = "../../examples/vfs_mount/served.rs"]
mod served;
