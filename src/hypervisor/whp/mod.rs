//! WHP: the Windows Hypervisor Platform, for x86-64 and arm64 guests on Windows. **Not written yet**: nothing here runs anything.
//!
//! It will have the files that every backend has: `system` (whether it may be used, with a remedy), `run` (the vCPU and
//! its exits), `state`, `lapic` and `msr` (the portable state), `cpuid` (the processor model), `time`. Until then the
//! one there is says that this version does not support it, and the software CPU serves in its stead.

pub mod system;
