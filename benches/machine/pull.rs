//! How fast an image comes from a registry, against skopeo and umoci with the same one.
//!
//! The image is a small Debian that mmdebstrap makes, once, as a single layer below the target directory. A
//! `docker-registry` on the loopback serves it. Ours ends with the layer in the store, synchronised to disk; theirs
//! with `skopeo copy` to an OCI layout and `umoci unpack` of it.

use std::error::Error;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs of each, by turns; the figures are medians.
const ROUNDS: usize = 3;
const REFERENCE: &str = "debian:bench";

/// Megabytes of the unpacked image a second.
pub(crate) struct Figures {
    pub(crate) ours: f64,
    pub(crate) skopeo_and_umoci: f64,
}

/// Measures. What is missing for it (a program, network for the first time) is the error.
pub(crate) fn figures() -> Result<Figures> {
    for program in ["docker-registry", "skopeo", "umoci", "mmdebstrap"] {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.map_err(|_| format!("there is no {program}"))?;
    }
    let base = target().join("tmp/pull-bench");
    fs::create_dir_all(&base)?;
    let (layout, megabytes) = layout(&base)?;
    let dir = tempfile::tempdir_in(&base)?;
    let registry = Registry::start(dir.path())?;
    let reference = format!("127.0.0.1:{}/{REFERENCE}", registry.port);
    let remote = format!("docker://{reference}");
    let skopeo = ["--insecure-policy", "copy", "--quiet"];
    run(Command::new("skopeo").args(skopeo).args(["--dest-tls-verify=false", &layout, &remote]))?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let store = tempfile::tempdir_in(&base)?;
        let client = cc::oci::Client::builder().cache_dir(store.path()).docker_config(None).build()?;
        // What others left to be written must not be written on our time.
        run(&mut Command::new("sync"))?;
        let start = Instant::now();
        let image = client.pull(&reference)?;
        ours.push(megabytes / start.elapsed().as_secs_f64());
        if (image.size() as f64 / 1e6 - megabytes).abs() > 1e-6 {
            return Err("the image has another size".into());
        }
        drop(image);
        drop(store);

        let place = tempfile::tempdir_in(&base)?;
        let copy = format!("{}:x", place.path().join("copy").display());
        run(&mut Command::new("sync"))?;
        let start = Instant::now();
        let to = format!("oci:{copy}");
        run(Command::new("skopeo").args(skopeo).args(["--src-tls-verify=false", &remote, &to]))?;
        let mut unpack = Command::new("umoci");
        unpack.args(["unpack", "--image", &copy]);
        if !is_root() {
            unpack.arg("--rootless");
        }
        run(unpack.arg(place.path().join("bundle")))?;
        theirs.push(megabytes / start.elapsed().as_secs_f64());
    }
    Ok(Figures { ours: median(ours), skopeo_and_umoci: median(theirs) })
}

/// The image as a layout for skopeo, made at the first time, and the megabytes it unpacks to.
fn layout(base: &Path) -> Result<(String, f64)> {
    let (tar, layout) = (base.join("root.tar"), base.join("layout"));
    if !tar.exists() {
        let new = base.join("new.tar");
        let release = fs::read_to_string("/etc/os-release")?;
        let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let mut make = Command::new("mmdebstrap");
        make.args(["--quiet", "--variant=minbase", suite.ok_or("a Debian without a name")?]).arg(&new);
        // From where this host has its own packages.
        let sources = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
        let sources = sources.map(|entry| entry.path()).chain([PathBuf::from("/etc/apt/sources.list")]);
        let wanted = |path: &PathBuf| path.extension().is_some_and(|e| e == "list" || e == "sources");
        make.args(sources.filter(|path| path.is_file() && wanted(path)));
        run(&mut make)?;
        fs::rename(&new, &tar)?;
    }
    let image = format!("{}:x", layout.display());
    if !layout.join("made").exists() {
        let _ = fs::remove_dir_all(&layout);
        run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
        run(Command::new("umoci").args(["new", "--image", &image]))?;
        run(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&tar))?;
        fs::write(layout.join("made"), "")?;
    }
    Ok((format!("oci:{image}"), fs::metadata(&tar)?.len() as f64 / 1e6))
}

/// The directory that this program was built in.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let found = program.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "target"));
    found.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), Path::to_owned)
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output();
    out.is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(());
    }
    let program = command.get_program().to_string_lossy();
    Err(format!("{program}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr)).into())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(dir: &Path) -> Result<Registry> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n\
             http: {{addr: '127.0.0.1:{port}', secret: none}}\n",
            dir.join("data").display()
        );
        fs::write(&config, text)?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut registry = Registry { child, port };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if registry.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err("docker-registry does not start".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
