//! Images against a real registry, with a proxy before it where something is to go wrong.
//!
//! Everything is in one binary. It needs Debian's `docker-registry`, `skopeo` and `umoci`.

mod archives;
mod auth;
mod concurrency;
mod failures;
#[path = "../../benches/machine/pull.rs"]
mod pull;
mod pulls;
mod speed;
mod support;
mod tls;
