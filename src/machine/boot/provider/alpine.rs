//! alpine
use super::super::BootError;
use super::OnProgress;
use super::cache::Draft;
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) mirror: String,
    pub(super) keys: Vec<(String, String)>,
    pub(super) enabled: bool,
}
impl Default for Options {
    fn default() -> Self {
        Self { mirror: String::new(), keys: vec![], enabled: false }
    }
}
pub(super) fn kernel(
    _: &Options,
    _: Option<&str>,
    _: &mut Draft,
    _: OnProgress<'_>,
) -> Result<(), BootError> {
    Err(BootError::NoCacheDirectory)
}
pub(super) fn busybox(_: &Options, _: &mut Draft, _: OnProgress<'_>) -> Result<(), BootError> {
    Err(BootError::NoCacheDirectory)
}
