//! The system's apt, asked for packages without installing anything.
//!
//! apt reads the system's own configuration: its mirrors, its keys, its proxies. Package lists,
//! archive cache and dpkg status are pointed into our cache, so it needs no root, works with the
//! system's lists empty and changes nothing of the system's. It checks the signature on the lists and
//! the digest of each package.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use super::super::BootError;
use super::cache::{Draft, Lock, cache_error};
use super::unpack::{KernelUnpacker, busybox};
use super::{OnProgress, Phase, Progress, deb, version_matches};

/// Lists are not fetched again within this time, unless what they name is gone.
const LISTS_STAY_FRESH: Duration = Duration::from_secs(3600);
/// No single run of apt takes longer.
const DEADLINE: Duration = Duration::from_secs(900);
/// What a program prints is not kept beyond this many bytes.
const MAX_OUTPUT: usize = 16 << 20;

/// Packages that depend on a distribution's current kernel, the leanest first.
const KERNELS: [&str; 5] = [
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-kvm",
    "linux-image-amd64",
    "linux-image-generic",
];
/// How kernel packages of those end, in the same order.
const FLAVOURS: [&str; 5] = ["-cloud-amd64", "-virtual", "-kvm", "-amd64", "-generic"];

/// Settings in the system's configuration that must not apply: hooks that clear the system's caches,
/// and foreign architectures.
const CONFIG: &str = r#"
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Get::AllowUnauthenticated "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"#;

/// apt with its directories in our cache. Needs the cache's lock.
#[derive(Debug)]
pub(super) struct Apt<'a> {
    dir: PathBuf,
    sources: Option<&'a Path>,
    _lock: &'a Lock,
}

#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    size: u64,
    depends: Vec<String>,
}

impl<'a> Apt<'a> {
    /// Fails with [`BootError::Command`] where there is no apt.
    pub(super) fn find(lock: &'a Lock, sources: Option<&'a Path>) -> Result<Self, BootError> {
        for program in ["apt-get", "apt-cache"] {
            let there = Command::new(program).arg("--version").stdin(Stdio::null()).output();
            if !there.is_ok_and(|out| out.status.success()) {
                let reason = "not on this system".to_owned();
                return Err(BootError::Command { program: program.to_owned(), reason });
            }
        }
        let dir = lock.dir().join("apt");
        for sub in ["lists/partial", "archives/partial"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(cache_error("create a directory", &path))?;
        }
        for (name, text) in [("status", ""), ("apt.conf", CONFIG)] {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(cache_error("write", &path))?;
        }
        Ok(Self { dir, sources, _lock: lock })
    }

    /// Fetches and unpacks a kernel, the distribution's current one or of the wanted version.
    pub(super) fn kernel(
        &self,
        version: Option<&str>,
        draft: &mut Draft,
        progress: OnProgress<'_>,
    ) -> Result<(), BootError> {
        self.with_lists("a kernel", progress, |apt| {
            let image = apt.kernel_package(version)?;
            let mut packages = Vec::new();
            for name in &image.depends {
                // Where modules have a package of their own.
                if name.starts_with("linux-modules-") && !name.contains("-extra") {
                    packages.extend(apt.package(name)?);
                }
            }
            packages.push(image);
            let files = apt.download(&packages, draft.scratch(), progress)?;
            let origin: Vec<String> = packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
            let name = packages.last().map(|p| format!("apt-{}_{}", p.name, p.version)).unwrap_or_default();
            let mut unpacker = KernelUnpacker::new(draft)?;
            for file in &files {
                deb::with_data(file, progress, |name, tar| unpacker.take(name, tar))?;
            }
            unpacker.finish(&origin.join(", "), &name)
        })
    }

    /// Fetches and unpacks a static busybox.
    pub(super) fn busybox(&self, draft: &mut Draft, progress: OnProgress<'_>) -> Result<(), BootError> {
        self.with_lists("busybox", progress, |apt| {
            let package = apt.package("busybox-static")?.ok_or_else(|| missing("busybox-static"))?;
            let (name, version) = (package.name.clone(), package.version.clone());
            for file in apt.download(&[package], draft.scratch(), progress)? {
                deb::with_data(&file, progress, |name, tar| busybox(draft, name, tar))?;
            }
            draft.note("origin", &format!("{name} {version}"));
            draft.set_name(format!("busybox-apt-{version}"));
            Ok(())
        })
    }

    /// Runs `work` with the lists there are if they are fresh, and if that fails with new ones.
    fn with_lists(
        &self,
        what: &str,
        progress: OnProgress<'_>,
        mut work: impl FnMut(&Self) -> Result<(), BootError>,
    ) -> Result<(), BootError> {
        let stamp = self.dir.join("updated");
        let age = std::fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        let key = self.sources.map(|s| s.display().to_string()).unwrap_or_default();
        let same = std::fs::read_to_string(&stamp).is_ok_and(|text| text == key);
        if same && age.is_some_and(|age| age < LISTS_STAY_FRESH) && work(self).is_ok() {
            return Ok(());
        }
        progress(Progress { phase: Phase::Index, what: "apt", current: 0, total: None });
        // Some of several sources may fail; whether that matters shows when the package is looked up.
        let warnings = self.run("apt-get", &["-q", "update"], None, |_| {});
        let warnings = match warnings {
            Ok((_, warnings)) => warnings,
            Err(e) => {
                // Lists of an earlier day may still do.
                tracing::debug!(error = e.chain(), "apt-get update");
                e.chain()
            }
        };
        let _ = std::fs::write(&stamp, key);
        work(self).map_err(|e| match e {
            BootError::Package { package, reason } if !warnings.is_empty() => {
                let _ = std::fs::remove_file(&stamp);
                tracing::debug!(warnings, "no {what}");
                BootError::Package {
                    package,
                    reason: format!("{reason} (apt-get update: {})", last_words(&warnings)),
                }
            }
            other => other,
        })
    }

    fn kernel_package(&self, version: Option<&str>) -> Result<Package, BootError> {
        let Some(version) = version else {
            for name in KERNELS {
                if let Some(package) = self.concrete(name)? {
                    return Ok(package);
                }
            }
            return Err(missing(&KERNELS.join(", ")));
        };
        let (names, _) =
            self.run("apt-cache", &["pkgnames", &format!("linux-image-{version}")], None, |_| {})?;
        for flavour in FLAVOURS {
            let mut releases: Vec<&str> = names
                .lines()
                .filter_map(|name| name.strip_prefix("linux-image-")?.strip_suffix(flavour))
                .filter(|release| version_matches(release, version))
                // `-amd64` also ends `-cloud-amd64` and the like.
                .filter(|release| {
                    !release.contains(|c: char| c.is_ascii_alphabetic()) || release.contains("+deb")
                })
                .filter(|release| !release.ends_with("-cloud") && !release.ends_with("-rt"))
                .collect();
            releases.sort_by_key(|release| std::cmp::Reverse(numbers(release)));
            for release in releases {
                if let Some(package) = self.concrete(&format!("linux-image-{release}{flavour}"))? {
                    return Ok(package);
                }
            }
        }
        Err(missing(&format!("linux-image-{version}*")))
    }

    /// The package that holds the kernel `name` stands for: itself, or what it depends on.
    fn concrete(&self, name: &str) -> Result<Option<Package>, BootError> {
        let mut name = name.to_owned();
        for _ in 0..4 {
            let Some(package) = self.package(&name)? else { return Ok(None) };
            match package.depends.iter().find(|d| d.starts_with("linux-image-")) {
                Some(next) => name = next.clone(),
                None => return Ok(Some(package)),
            }
        }
        Ok(None)
    }

    /// The candidate version of a package, if the lists have one that can be downloaded.
    fn package(&self, name: &str) -> Result<Option<Package>, BootError> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", name], None, |_| {});
        let text = match shown {
            Ok((text, _)) => text,
            // How apt-cache says that it does not know the package.
            Err(BootError::Command { reason, .. }) if reason.contains("No packages found") => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        Ok(parse_stanza(&text))
    }

    /// Downloads packages into `into` and gives their files, in the same order.
    fn download(
        &self,
        packages: &[Package],
        into: &Path,
        progress: OnProgress<'_>,
    ) -> Result<Vec<PathBuf>, BootError> {
        let mut files = Vec::new();
        for package in packages {
            let dir = into.join(files.len().to_string());
            // Left from a try with old lists.
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir(&dir).map_err(cache_error("create a directory", &dir))?;
            let what = format!("{}={}", package.name, package.version);
            let args = ["-q", "-o", "APT::Status-Fd=1", "download", &what];
            let report = |current| {
                progress(Progress {
                    phase: Phase::Download,
                    what: &package.name,
                    current,
                    total: Some(package.size),
                });
            };
            report(0);
            self.run("apt-get", &args, Some(&dir), |line| {
                // dlstatus:<item>:<percent>:<text>
                let percent = line.strip_prefix("dlstatus:").and_then(|rest| rest.split(':').nth(1));
                if let Some(percent) = percent.and_then(|p| p.parse::<f64>().ok()) {
                    report((package.size as f64 * percent.clamp(0.0, 100.0) / 100.0) as u64);
                }
            })
            .map_err(|e| no_space(e, &dir))?;
            report(package.size);
            let mut found = std::fs::read_dir(&dir).map_err(cache_error("read", &dir))?;
            let file = found
                .find_map(|f| f.ok().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "deb")));
            files.push(file.ok_or_else(|| BootError::Package {
                package: package.name.clone(),
                reason: "apt-get download made no file".into(),
            })?);
        }
        Ok(files)
    }

    /// Runs one of apt's programs. Gives stdout and stderr.
    fn run(
        &self,
        program: &str,
        args: &[&str],
        dir: Option<&Path>,
        mut on_line: impl FnMut(&str),
    ) -> Result<(String, String), BootError> {
        let failed =
            |reason: String| BootError::Command { program: format!("{program} {}", args.join(" ")), reason };
        let mut command = Command::new(program);
        let mut set = |key: &str, value: &Path| {
            let mut option = std::ffi::OsString::from(format!("{key}="));
            option.push(value);
            command.arg("-o").arg(option);
        };
        set("Dir::State::lists", &self.dir.join("lists"));
        set("Dir::State::status", &self.dir.join("status"));
        set("Dir::Cache", &self.dir);
        if let Some(sources) = self.sources {
            set("Dir::Etc::sourcelist", sources);
            set("Dir::Etc::sourceparts", Path::new("/dev/null"));
        }
        // As root apt would download as another user, who cannot write into root's cache directory.
        set("APT::Sandbox::User", Path::new("root"));
        command.arg("-c").arg(self.dir.join("apt.conf")).args(args);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = dir {
            command.current_dir(dir);
        }
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;

        let (lines, incoming) = mpsc::channel();
        for (errors, pipe) in [
            (false, child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>)),
            (true, child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>)),
        ] {
            let (Some(pipe), lines) = (pipe, lines.clone()) else { continue };
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    if lines.send((errors, String::from_utf8_lossy(&line).into_owned())).is_err() {
                        break;
                    }
                }
            });
        }
        drop(lines);
        let end = Instant::now() + DEADLINE;
        let (mut out, mut err) = (String::new(), String::new());
        loop {
            match incoming.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((errors, line)) => {
                    let text = if errors { &mut err } else { &mut out };
                    if text.len() + line.len() < MAX_OUTPUT {
                        text.push_str(&line);
                        text.push('\n');
                    }
                    if !errors {
                        on_line(&line);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("took longer than {} minutes", DEADLINE.as_secs() / 60)));
                }
            }
        }
        let status = child.wait().map_err(|e| failed(e.to_string()))?;
        if status.success() {
            return Ok((out, err));
        }
        Err(failed(if err.trim().is_empty() { status.to_string() } else { last_words(&err) }))
    }
}

/// A full disk shows only in what apt says.
fn no_space(e: BootError, dir: &Path) -> BootError {
    match &e {
        BootError::Command { reason, .. }
            if reason.contains("No space left") || reason.contains("enough free space") =>
        {
            cache_error("download", dir)(std::io::ErrorKind::StorageFull.into())
        }
        _ => e,
    }
}

fn missing(names: &str) -> BootError {
    BootError::Package { package: names.to_owned(), reason: "not in any of apt's sources".into() }
}

/// What a program said went wrong, in one line: its lines marked as errors or, without such, its last.
fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|l| l.starts_with("E:")).collect();
    let lines = if errors.is_empty() { lines } else { errors };
    lines[lines.len().saturating_sub(3)..].join("; ")
}

/// All numbers in a release name, for comparing.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().unwrap_or(u64::MAX))
        .collect()
}

/// The first paragraph of `apt-cache show`. `None` when it lacks what a real package has.
fn parse_stanza(text: &str) -> Option<Package> {
    let mut fields = HashMap::new();
    for line in text.lines() {
        if line.is_empty() && !fields.is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(": ").filter(|_| !line.starts_with(' ')) {
            fields.insert(key, value.trim());
        }
    }
    fields.get("Filename")?;
    let depends = fields.get("Depends").copied().unwrap_or_default().split(',').filter_map(|dependency| {
        let first = dependency.split('|').next()?.split_whitespace().next()?;
        Some(first.split(':').next()?.to_owned())
    });
    Some(Package {
        name: (*fields.get("Package")?).to_owned(),
        version: (*fields.get("Version")?).to_owned(),
        size: fields.get("Size")?.parse().ok()?,
        depends: depends.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stanza_of_apt_cache_show() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.1.9-2\nDepends: a (= 1) | b, linux-image-6.1:any\n\
                    Description: x\n more: words\nFilename: pool/x.deb\nSize: 1504\n\nPackage: other\n";
        let package = parse_stanza(text).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("linux-image-cloud-amd64", "6.1.9-2"));
        assert_eq!(package.depends, ["a", "linux-image-6.1"]);
        assert_eq!(package.size, 1504);
        // A virtual or only installed package cannot be downloaded.
        assert!(parse_stanza("Package: x\nVersion: 1\nSize: 4\n").is_none());
        assert!(parse_stanza("").is_none());
    }

    #[test]
    fn releases_are_ordered_by_number() {
        let mut names = ["6.12.9+deb12", "6.12.117+deb12", "6.12", "6.12.20+deb12"];
        names.sort_by_key(|n| std::cmp::Reverse(numbers(n)));
        assert_eq!(names, ["6.12.117+deb12", "6.12.20+deb12", "6.12.9+deb12", "6.12"]);
    }
}
