//! The container and its golden file.
