//! Which backend a machine runs on.
//!
//! [`Backend::Auto`] asks the probe, not the device: where hardware virtualization runs a kernel at the
//! processor's speed it is taken, else the software CPU, which always works. Whoever insists on one gets
//! it or an error that says why not.

use std::ffi::OsStr;

use super::{Backend, Error, InstanceBuilder};
use crate::hypervisor::VmOptions;
use crate::hypervisor::probe::{self, Verdict};
use crate::machine::{MachineError, Platform};

/// What hardware virtualization is like on this host, and so what [`Backend::Auto`] means: `Ok` with what the probe
/// measured where machines use it, else the reason why they do not, with what can be done about it.
///
/// ```no_run
/// match cc::supports_hypervisor() {
///     Ok(how) => println!("{how}"),
///     Err(why) => println!("the software CPU: {why}"),
/// }
/// ```
pub fn supports_hypervisor() -> Result<String, String> {
    match probe::kvm() {
        Ok(verdict) if verdict.is_native() => Ok(format!("KVM: {verdict}")),
        Ok(verdict) => Err(unfit(&verdict)),
        Err(why) => Err(why.to_string()),
    }
}

/// What is wrong with a KVM that opens.
fn unfit(verdict: &Verdict) -> String {
    let remedy = match verdict {
        Verdict::Emulated(_) => {
            "; this is a virtual machine whose host offers no virtualization of its own (nested virtualization): \
             turn that on there, or run on the host itself"
        }
        _ => "",
    };
    format!("KVM opens, but {verdict}{remedy}")
}

/// Names the backend of machines that are not told one.
const VARIABLE: &str = "CC_BACKEND";

/// What the variable asks for.
fn from_environment(value: Option<&OsStr>) -> Result<Backend, Error> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Backend::Auto) };
    let known = [Backend::Auto, Backend::Soft, Backend::Kvm];
    known
        .into_iter()
        .find(|backend| value == backend.name())
        .ok_or_else(|| Error::Backend { value: value.to_string_lossy().into_owned() })
}

/// The platform that the builder asks for, and why it is that one.
pub(super) fn platform(builder: &InstanceBuilder) -> Result<(Platform, String), Error> {
    let asked = match builder.backend {
        Backend::Auto => from_environment(std::env::var_os(VARIABLE).as_deref())?,
        asked => asked,
    };
    let unavailable = |reason: String| Error::HypervisorUnavailable { reason };
    let soft = |reason: String| {
        if builder.require_hardware {
            return Err(unavailable(reason));
        }
        let options = VmOptions { model: builder.cpu_model.unwrap_or_default(), opinions: 0, traps: false };
        Ok((Platform { backend: Backend::Soft, options }, reason))
    };
    match asked {
        Backend::Soft => soft("the software CPU was asked for".into()),
        Backend::Auto => match supports_hypervisor() {
            Ok(how) => match kvm(builder, false) {
                Ok(platform) => Ok((platform, how)),
                // The wanted processor is more than it has.
                Err(why) => soft(format!("KVM is not used: {why}")),
            },
            Err(why) => soft(why),
        },
        Backend::Kvm => {
            let verdict = probe::kvm().map_err(|why| unavailable(why.to_string()))?;
            // Insisting helps where it is slow only.
            if builder.require_hardware && !verdict.is_native() || !verdict.runs_linux() {
                return Err(unavailable(unfit(&verdict)));
            }
            Ok((kvm(builder, verdict.wants_traps())?, format!("KVM was asked for; {verdict}")))
        }
    }
}

fn kvm(builder: &InstanceBuilder, traps: bool) -> Result<Platform, Error> {
    let model = crate::hypervisor::kvm_model(builder.cpu_model).map_err(MachineError::Hypervisor)?;
    let options = VmOptions { model, opinions: builder.opinions, traps };
    Ok(Platform { backend: Backend::Kvm, options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_a_backend() {
        let of = |value: &str| from_environment(Some(OsStr::new(value)));
        assert_eq!(from_environment(None).unwrap(), Backend::Auto);
        for (value, backend) in
            [("", Backend::Auto), ("auto", Backend::Auto), ("soft", Backend::Soft), ("kvm", Backend::Kvm)]
        {
            assert_eq!(of(value).unwrap(), backend);
        }
        for value in ["KVM", "qemu", " soft", "soft\0"] {
            let error = of(value).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{value}");
            assert!(error.to_string().contains(value), "{error}");
        }
    }
}
