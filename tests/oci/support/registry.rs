//! Debian's `docker-registry` on a free loopback port. Gone with the value, or with this process.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::images::Image;
use super::{run, scratch};

/// The user and password of a registry that wants some.
pub(crate) const USER: &str = "ali";
pub(crate) const PASSWORD: &str = "open sesame";
const HTPASSWD: &str = "ali:$2b$04$ijfAkQao1lnYlw7uuj66SuAUXtZImy8DKoYA7PwKgRkGFMA4yy0YO\n";

/// Becomes the registry; what it leaves behind ends it when the process that holds the pipe has gone.
const SHELL: &str = "exec 3<&0; \
    (cat <&3; read name <\"/proc/$$/comm\"; test \"$name\" = docker-registry && kill -9 $$) >/dev/null 2>&1 & \
    exec docker-registry serve \"$0\" </dev/null 3<&-";

pub(crate) struct Registry {
    child: Child,
    _dir: Option<tempfile::TempDir>,
    port: u16,
    login: bool,
}

impl Registry {
    pub(crate) fn start() -> Registry {
        Registry::with(None, false)
    }

    /// One in a static, which is never dropped, with its data in `dir`.
    #[allow(dead_code, reason = "machines' tests have one")]
    pub(crate) fn start_for_process(dir: &Path) -> Registry {
        Registry::with(Some(dir), false)
    }

    /// One that wants [`USER`] and [`PASSWORD`].
    pub(crate) fn with_login() -> Registry {
        Registry::with(None, true)
    }

    fn with(dir: Option<&Path>, login: bool) -> Registry {
        for _ in 0..10 {
            if let Some(registry) = Registry::try_start(dir, login) {
                return registry;
            }
        }
        panic!("docker-registry does not start; is Debian's package docker-registry installed?");
    }

    /// `None` when somebody else took the port in between.
    fn try_start(dir: Option<&Path>, login: bool) -> Option<Registry> {
        let own = dir.is_none().then(scratch);
        let dir = own.as_ref().map(|own| own.path()).or(dir)?;
        std::fs::create_dir_all(dir).expect("a directory");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let passwords = dir.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).expect("a file");
        let auth = match login {
            true => format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", passwords.display()),
            false => String::new(),
        };
        let config = dir.join("config.yml");
        let data = dir.join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}', secret: none}}\n{auth}",
            data.display()
        );
        std::fs::write(&config, text).expect("a file");
        let mut child = Command::new("sh")
            .args(["-c", SHELL])
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if child.try_wait().expect("a child").is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(Registry { child, _dir: own, port, login });
            }
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Pushes with skopeo; gives the full reference.
    pub(crate) fn push(&self, image: &Image, name: &str) -> String {
        let layout = scratch();
        image.write_layout(layout.path(), None);
        self.push_layout(layout.path(), name, &[])
    }

    /// Pushes a layout; gives the full reference.
    pub(crate) fn push_layout(&self, layout: &Path, name: &str, options: &[&str]) -> String {
        let reference = format!("{}/{name}", self.address());
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{reference}");
        let login = format!("--dest-creds={USER}:{PASSWORD}");
        let mut arguments = vec!["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
        if self.login {
            arguments.push(&login);
        }
        arguments.extend_from_slice(options);
        arguments.extend([from.as_str(), to.as_str()]);
        run("skopeo", &arguments);
        reference
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
