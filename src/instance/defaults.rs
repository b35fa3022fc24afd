//! What commands of a machine start with: the image's configuration and the builder's options over it.

use std::ffi::{OsStr, OsString};

use crate::oci::ImageConfig;
use crate::process::Defaults;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the builder was told. It goes before what the image says.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) user: Option<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) current_dir: Option<OsString>,
}

impl Overrides {
    /// Changes what a machine's commands started with so far.
    pub(super) fn apply(&self, defaults: &mut Defaults) {
        for (name, value) in &self.env {
            match defaults.env.iter_mut().find(|(n, _)| n == name) {
                Some((_, old)) => old.clone_from(value),
                None => defaults.env.push((name.clone(), value.clone())),
            }
        }
        if self.user.is_some() {
            defaults.user.clone_from(&self.user);
        }
        if self.current_dir.is_some() {
            defaults.current_dir.clone_from(&self.current_dir);
        }
    }
}

/// Joins the two.
pub(super) fn defaults(image: Option<&ImageConfig>, overrides: &Overrides) -> Defaults {
    let mut env: Vec<(OsString, OsString)> = vec![("PATH".into(), PATH.into())];
    let mut set = |name: &OsStr, value: &OsStr| match env.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    for variable in image.map_or(&[][..], |i| &i.env) {
        // A name without a value is one that the builder of the image had and we have not.
        if let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(OsStr::new(name), OsStr::new(value));
        }
    }
    for (name, value) in &overrides.env {
        set(name, value);
    }
    let image_user = image.and_then(|i| i.user.clone()).map(OsString::from);
    let image_dir = image.and_then(|i| i.working_dir.clone()).map(OsString::from);
    let user = overrides.user.clone().or(image_user);
    // For a user by name, the agent looks HOME up.
    if user.is_none() && !env.iter().any(|(name, _)| name == "HOME") {
        env.push(("HOME".into(), "/root".into()));
    }
    let current_dir = overrides.current_dir.clone().or(image_dir).map(|dir| match dir.as_encoded_bytes() {
        [b'/', ..] => dir,
        _ => {
            let mut absolute = OsString::from("/");
            absolute.push(dir);
            absolute
        }
    });
    Defaults { env, current_dir, user, ..Defaults::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/opt/bin","A=1","B","=x","C=a=b"],
               "User":"app:staff","WorkingDir":"srv"},"rootfs":{"type":"layers","diff_ids":[]}}"#,
            "a test",
        )
        .unwrap()
    }

    fn get<'a>(d: &'a Defaults, name: &str) -> Option<&'a OsStr> {
        d.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_os_str())
    }

    #[test]
    fn the_image_speaks_where_the_builder_does_not() {
        let d = defaults(Some(&image()), &Overrides::default());
        assert_eq!(get(&d, "PATH"), Some(OsStr::new("/opt/bin")));
        assert_eq!(get(&d, "C"), Some(OsStr::new("a=b")));
        assert_eq!((get(&d, "B"), get(&d, ""), d.env.len()), (None, None, 3));
        assert_eq!(d.user.as_deref(), Some(OsStr::new("app:staff")));
        assert_eq!(d.current_dir.as_deref(), Some(OsStr::new("/srv")));
    }

    #[test]
    fn the_builder_goes_first() {
        let overrides = Overrides {
            user: Some("1000".into()),
            env: vec![("A".into(), "2".into()), ("D".into(), "".into())],
            current_dir: Some("/tmp".into()),
        };
        let d = defaults(Some(&image()), &overrides);
        assert_eq!(get(&d, "A"), Some(OsStr::new("2")));
        assert_eq!(get(&d, "D"), Some(OsStr::new("")));
        assert_eq!(d.user.as_deref(), Some(OsStr::new("1000")));
        assert_eq!(d.current_dir.as_deref(), Some(OsStr::new("/tmp")));
        let none = defaults(None, &Overrides::default());
        assert_eq!(none.env, [("PATH".into(), PATH.into()), ("HOME".into(), "/root".into())]);
        assert_eq!((none.user, none.current_dir), (None, None));
    }
}
