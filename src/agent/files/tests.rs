//! A worker that lies, and a host that does.
