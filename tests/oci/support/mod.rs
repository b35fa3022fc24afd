//! A registry, a proxy before it, and images that the tests write themselves.

pub(crate) mod images;
pub(crate) mod proxy;
pub(crate) mod registry;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cc::oci::{Client, ClientBuilder, Image};
use cc::vfs::layer::Layer;
use cc::vfs::{Caller, FileSystem, Limits, Name, NodeId, Overlay};

/// A client with a store of its own, no stored credentials, and little patience.
pub(crate) fn client_in(dir: &Path) -> ClientBuilder {
    Client::builder()
        .cache_dir(dir)
        .docker_config(None)
        .no_progress_timeout(Duration::from_secs(20))
        .retries(3)
}

/// A directory that is gone with the value.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Runs a program that must succeed; gives its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        out.status.success(),
        "{program} {arguments:?}: {}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The root that an image's layers make.
pub(crate) fn root(image: &Image) -> Overlay {
    Overlay::new(image.layers().to_vec(), Limits::default()).expect("layers that fit together")
}

/// Reads a file of an image by its path; `None` if there is none.
pub(crate) fn read(fs: &Overlay, path: &str) -> Option<Vec<u8>> {
    let caller = Caller { uid: 0, gid: 0, pid: 0 };
    let mut node = NodeId::ROOT;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        node = fs.lookup(&caller, node, Name::new(part.as_bytes()).expect("a name")).ok()?.node;
    }
    let mut bytes = Vec::new();
    let opened = fs.open(&caller, node, 0, false).ok()?;
    fs.read(node, opened.handle, 0, 1 << 24, &mut bytes).ok()?;
    Some(bytes)
}

/// The text in the file `name` of an image made by [`images::Image::small`].
pub(crate) fn text(image: &Image) -> String {
    String::from_utf8(read(&root(image), "name").expect("the file")).expect("text")
}

/// How much a layer's tar has.
pub(crate) fn lengths(layers: &[Layer]) -> Vec<u64> {
    layers.iter().map(|layer| layer.index().tar_len()).collect()
}

pub(crate) fn note(text: &str) {
    // Past the capture of test output, so that it is seen of a test that passes.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command that runs nothing but the test `name` of this binary.
pub(crate) fn this_test(name: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).envs(variables.iter().copied());
    command
}

/// Runs the test `name` in a process of its own, with these variables, by which it knows.
pub(crate) fn alone(name: &str, variables: &[(&str, &str)]) {
    let out = this_test(name, variables).output().expect("this binary runs");
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{name} failed in its own process");
    assert!(text.contains("1 passed"), "there is no test {name}");
}
