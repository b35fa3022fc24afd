//! What a machine is, beside the state of its parts.

use serde::{Deserialize, Serialize};

use super::{Saved, StateError, kind};

/// The machine that a state belongs to. A machine of another make refuses it before anything else
/// is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Machine time when the state was taken, in ns.
    pub machine_time_ns: u64,
    /// Wall clock of the host when the state was taken, in ns since the Unix epoch.
    pub wall_clock_ns: u64,
    /// Processor model that the guest has seen, such as `x86-64-v2`.
    pub cpu_model: String,
    /// Devices in their slots, by name.
    pub devices: Vec<String>,
}

impl Machine {
    /// Most vCPUs: ids of xAPICs have eight bits, and all ones means everyone.
    pub const MAX_CPUS: u32 = 255;
    /// Most devices.
    pub const MAX_DEVICES: usize = 256;
    /// Most bytes of the name of a processor model or device.
    pub const MAX_NAME: usize = 255;
    /// Most bytes of RAM: what 46 address bits reach.
    pub const MAX_MEMORY: u64 = 1 << 46;
}

impl Saved for Machine {
    const KIND: u16 = kind::MACHINE;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 128 << 10;

    fn check(&self) -> Result<(), StateError> {
        // Names end up in messages.
        let name = |name: &String| {
            !name.is_empty() && name.len() <= Self::MAX_NAME && !name.chars().any(char::is_control)
        };
        let what = if self.memory == 0 || self.memory > Self::MAX_MEMORY || !self.memory.is_multiple_of(4096)
        {
            "memory of the machine"
        } else if self.cpus == 0 || self.cpus > Self::MAX_CPUS {
            "number of vCPUs"
        } else if !name(&self.cpu_model) {
            "name of the processor model"
        } else if self.devices.len() > Self::MAX_DEVICES || !self.devices.iter().all(name) {
            "names of the devices"
        } else {
            return Ok(());
        };
        Err(StateError::Invalid { what })
    }
}
