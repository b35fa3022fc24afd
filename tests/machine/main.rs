//! Whole machines on the software CPU, with real kernels and a real userland.
//!
//! Everything is in one binary so that what only runs commands can share one machine. Tests that
//! count what a process holds (descriptors, threads, memory) run in a process of their own, see
//! [`support::alone`].

mod cli;
mod commands;
mod endings;
mod examples;
mod files;
mod floods;
mod fs_snapshot_store;
mod fs_snapshots;
mod images;
mod kernels;
mod kvm;
mod lifetime;
mod mounts;
mod programs;
mod saved;
mod smp;
mod snapshot_clones;
mod snapshot_input;
mod snapshots;
mod support;
mod terminal;
mod world;
