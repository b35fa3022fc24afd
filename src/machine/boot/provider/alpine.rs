//! Packages of Alpine Linux over HTTP, for hosts without apt.
//!
//! What vouches for what: a key that is built in, given, or in `/etc/apk/keys` signs the index; the
//! index has the digest of each package's control part; the control part has the digest of the data.
//! All three are checked before anything of a package is used, so the mirror need not be trusted.

use std::io::Read;
use std::time::Duration;

use ring::{digest, signature};

use super::super::BootError;
use super::cache::Draft;
use super::unpack::{Counted, KernelUnpacker, broken, busybox as unpack_busybox};
use super::{OnProgress, Phase, Progress, version_matches};

const MIRROR: &str = "https://dl-cdn.alpinelinux.org/alpine";
const BRANCH: &str = "latest-stable/main/x86_64";
const MAX_INDEX: u64 = 64 << 20;
const MAX_PACKAGE: u64 = 512 << 20;
/// No part of a package unpacks to more, in bytes.
const MAX_PART: u64 = 2 << 30;
const MAX_SMALL_PART: u64 = 16 << 20;

/// The key that signs Alpine's x86-64 repositories.
const KEY_NAME: &str = "alpine-devel@lists.alpinelinux.org-6165ee59.rsa.pub";
const KEY: &str = "-----BEGIN PUBLIC KEY-----
MIICIjANBgkqhkiG9w0BAQEFAAOCAg8AMIICCgKCAgEAutQkua2CAig4VFSJ7v54
ALyu/J1WB3oni7qwCZD3veURw7HxpNAj9hR+S5N/pNeZgubQvJWyaPuQDm7PTs1+
tFGiYNfAsiibX6Rv0wci3M+z2XEVAeR9Vzg6v4qoofDyoTbovn2LztaNEjTkB+oK
tlvpNhg1zhou0jDVYFniEXvzjckxswHVb8cT0OMTKHALyLPrPOJzVtM9C1ew2Nnc
3848xLiApMu3NBk0JqfcS3Bo5Y2b1FRVBvdt+2gFoKZix1MnZdAEZ8xQzL/a0YS5
Hd0wj5+EEKHfOd3A75uPa/WQmA+o0cBFfrzm69QDcSJSwGpzWrD1ScH3AK8nWvoj
v7e9gukK/9yl1b4fQQ00vttwJPSgm9EnfPHLAtgXkRloI27H6/PuLoNvSAMQwuCD
hQRlyGLPBETKkHeodfLoULjhDi1K2gKJTMhtbnUcAA7nEphkMhPWkBpgFdrH+5z4
Lxy+3ek0cqcI7K68EtrffU8jtUj9LFTUC8dERaIBs7NgQ/LfDbDfGh9g6qVj1hZl
k9aaIPTm/xsi8v3u+0qaq7KzIBc9s59JOoA8TlpOaYdVgSQhHHLBaahOuAigH+VI
isbC9vmqsThF2QdDtQt37keuqoda2E6sL7PUvIyVXDRfwX7uMDjlzTxHTymvq2Ck
htBqojBnThmjJQFgZXocHG8CAwEAAQ==
-----END PUBLIC KEY-----";

#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) enabled: bool,
    pub(super) mirror: String,
    /// Name and PEM text of each trusted key.
    pub(super) keys: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        let mirror = std::env::var("CC_ALPINE_MIRROR").ok().filter(|url| !url.is_empty());
        Self {
            enabled: true,
            mirror: mirror.unwrap_or_else(|| MIRROR.into()),
            keys: vec![(KEY_NAME.into(), KEY.into())],
        }
    }
}

/// Fetches and unpacks the current `linux-virt`.
pub(super) fn kernel(
    options: &Options,
    version: Option<&str>,
    draft: &mut Draft,
    progress: OnProgress<'_>,
) -> Result<(), BootError> {
    let (package, bytes) = fetch(options, "linux-virt", version, progress)?;
    let file = package.file();
    let mut unpacker = KernelUnpacker::new(draft)?;
    with_data(&file, &package, &bytes, progress, |tar| unpacker.take(&file, tar))?;
    unpacker.finish(
        &format!("Alpine {} {}", package.name, package.version),
        &format!("alpine-{}", package.version),
    )
}

/// Fetches and unpacks the current `busybox-static`.
pub(super) fn busybox(
    options: &Options,
    draft: &mut Draft,
    progress: OnProgress<'_>,
) -> Result<(), BootError> {
    let (package, bytes) = fetch(options, "busybox-static", None, progress)?;
    let file = package.file();
    with_data(&file, &package, &bytes, progress, |tar| unpack_busybox(draft, &file, tar))?;
    draft.note("origin", &format!("Alpine {} {}", package.name, package.version));
    draft.set_name(format!("busybox-alpine-{}", package.version));
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    size: u64,
    /// The `C:` line: `Q1` and the SHA-1, or `Q2` and the SHA-256, of the control part in base64.
    checksum: String,
}

impl Package {
    fn file(&self) -> String {
        format!("{}-{}.apk", self.name, self.version)
    }
}

fn fetch(
    options: &Options,
    name: &str,
    version: Option<&str>,
    progress: OnProgress<'_>,
) -> Result<(Package, Vec<u8>), BootError> {
    let base = format!("{}/{BRANCH}", options.mirror.trim_end_matches('/'));
    let index = download(&format!("{base}/APKINDEX.tar.gz"), MAX_INDEX, Phase::Index, "Alpine", progress)?;
    let text = open_index(&index, &options.keys)?;
    let package = find(&text, name)
        .ok_or_else(|| BootError::Package { package: name.into(), reason: "not in Alpine's index".into() })?;
    if let Some(wanted) = version.filter(|wanted| !version_matches(&package.version, wanted)) {
        let reason = format!("Alpine has {}, not {wanted}", package.version);
        return Err(BootError::Package { package: package.name, reason });
    }
    let url = format!("{base}/{}", package.file());
    let bytes = download(&url, MAX_PACKAGE, Phase::Download, name, progress)?;
    Ok((package, bytes))
}

fn download(
    url: &str,
    cap: u64,
    phase: Phase,
    what: &str,
    progress: OnProgress<'_>,
) -> Result<Vec<u8>, BootError> {
    let failed = |reason: String| BootError::Download { url: url.to_owned(), reason };
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .timeout_global(Some(Duration::from_secs(900)))
        .build()
        .new_agent();
    progress(Progress { phase, what, current: 0, total: None });
    let response = agent.get(url).call().map_err(|e| failed(e.to_string()))?;
    let mut body = response.into_body();
    let total = body.content_length();
    let mut bytes = Vec::new();
    let reader = Counted { inner: body.as_reader(), phase, what, done: 0, total, progress };
    reader.take(cap + 1).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > cap {
        return Err(failed(format!("more than {} MiB", cap >> 20)));
    }
    Ok(bytes)
}

/// Checks the index's signature and gives its text.
fn open_index(bytes: &[u8], keys: &[(String, String)]) -> Result<String, BootError> {
    const WHAT: &str = "APKINDEX.tar.gz";
    let refused = |reason: String| BootError::Integrity { what: WHAT.into(), reason };
    let (head, signed) = member(bytes, MAX_SMALL_PART).map_err(broken(WHAT))?;
    let (name, signature) = first_file(&head).ok_or_else(|| refused("no signature in it".into()))?;
    let (algorithm, key_name): (&dyn signature::VerificationAlgorithm, &str) =
        if let Some(key) = name.strip_prefix(".SIGN.RSA256.") {
            (&signature::RSA_PKCS1_2048_8192_SHA256, key)
        } else if let Some(key) = name.strip_prefix(".SIGN.RSA.") {
            (&signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, key)
        } else {
            return Err(refused("it is not signed".into()));
        };
    let pem = match keys.iter().find(|(name, _)| name == key_name) {
        Some((_, pem)) => pem.clone(),
        None => system_key(key_name)
            .ok_or_else(|| refused(format!("it is signed with the key {key_name}, which is not trusted")))?,
    };
    let key = public_key(&pem).ok_or_else(|| refused(format!("the key {key_name} is malformed")))?;
    signature::UnparsedPublicKey::new(algorithm, &key)
        .verify(signed, &signature)
        .map_err(|_| refused(format!("the signature by {key_name} is wrong")))?;

    let (content, _) = member(signed, MAX_INDEX * 4).map_err(broken(WHAT))?;
    let mut archive = tar::Archive::new(content.as_slice());
    for entry in archive.entries().map_err(broken(WHAT))? {
        let mut entry = entry.map_err(broken(WHAT))?;
        if *entry.path_bytes() == *b"APKINDEX" {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(broken(WHAT))?;
            return Ok(text);
        }
    }
    Err(BootError::Package { package: WHAT.into(), reason: "no APKINDEX in it".into() })
}

/// The package `name` in an index. Anything that does not look like one is passed over.
fn find(index: &str, name: &str) -> Option<Package> {
    let plain =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._~".contains(&b));
    index.split("\n\n").find_map(|stanza| {
        let field = |key: &str| stanza.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        if field("P")? != name {
            return None;
        }
        let version = field("V").filter(|v| plain(v))?.to_owned();
        let checksum = field("C")?.to_owned();
        Some(Package { name: name.to_owned(), version, size: field("S")?.parse().ok()?, checksum })
    })
}

/// Checks a package against its index entry and lends its data's tar stream to `take`.
fn with_data<T>(
    file: &str,
    package: &Package,
    bytes: &[u8],
    progress: OnProgress<'_>,
    take: impl FnOnce(&mut dyn Read) -> Result<T, BootError>,
) -> Result<T, BootError> {
    let refused = |reason: &str| BootError::Integrity { what: file.to_owned(), reason: reason.to_owned() };
    if bytes.len() as u64 != package.size {
        return Err(refused(&format!("{} bytes instead of {}", bytes.len(), package.size)));
    }
    let (mut part, mut rest) = member(bytes, MAX_SMALL_PART).map_err(broken(file))?;
    let mut control = &bytes[..bytes.len() - rest.len()];
    // The package's own signature; the index vouches for the control part after it.
    if first_file(&part).is_some_and(|(name, _)| name.starts_with(".SIGN.")) {
        let start = rest;
        (part, rest) = member(start, MAX_SMALL_PART).map_err(broken(file))?;
        control = &start[..start.len() - rest.len()];
    }
    let (algorithm, expected) = match package.checksum.split_at_checked(2) {
        Some(("Q1", rest)) => (&digest::SHA1_FOR_LEGACY_USE_ONLY, base64(rest)),
        Some(("Q2", rest)) => (&digest::SHA256, base64(rest)),
        _ => (&digest::SHA256, None),
    };
    let expected = expected.ok_or_else(|| refused("the index has no digest of a known kind for it"))?;
    if digest::digest(algorithm, control).as_ref() != expected {
        return Err(refused("the control part is not the one in the index"));
    }
    let info = control_info(&part).ok_or_else(|| refused("no .PKGINFO in it"))?;
    let hash = info.lines().find_map(|line| line.strip_prefix("datahash = "));
    let actual: String =
        digest::digest(&digest::SHA256, rest).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    if hash.map(str::trim) != Some(&actual) {
        return Err(refused("the data is not what the control part says"));
    }
    let total = Some(rest.len() as u64);
    let counted = Counted { inner: rest, phase: Phase::Unpack, what: file, done: 0, total, progress };
    let mut tar = flate2::read::MultiGzDecoder::new(counted).take(MAX_PART);
    take(&mut tar)
}

fn control_info(tar: &[u8]) -> Option<String> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if *entry.path_bytes() == *b".PKGINFO" {
            let mut text = String::new();
            entry.read_to_string(&mut text).ok()?;
            return Some(text);
        }
    }
    None
}

/// The first gzip member of `bytes`, unpacked, and what follows it.
fn member(bytes: &[u8], cap: u64) -> std::io::Result<(Vec<u8>, &[u8])> {
    let mut decoder = flate2::bufread::GzDecoder::new(bytes);
    let mut out = Vec::new();
    (&mut decoder).take(cap + 1).read_to_end(&mut out)?;
    if out.len() as u64 > cap {
        return Err(std::io::Error::other("larger than any such file"));
    }
    Ok((out, decoder.into_inner()))
}

fn first_file(tar: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let mut entry = archive.entries().ok()?.next()?.ok()?;
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let mut content = Vec::new();
    (&mut entry).take(MAX_SMALL_PART).read_to_end(&mut content).ok()?;
    Some((name, content))
}

/// A key of the host's own apk.
fn system_key(name: &str) -> Option<String> {
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    std::fs::read_to_string(std::path::Path::new("/etc/apk/keys").join(name)).ok()
}

/// The PKCS #1 `RSAPublicKey` in a PEM `PUBLIC KEY`.
fn public_key(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split_once("-----BEGIN PUBLIC KEY-----")?.1.split_once("-----END PUBLIC KEY-----")?.0;
    let der = base64(body)?;
    // SEQUENCE { SEQUENCE { algorithm }, BIT STRING { no unused bits, key } }
    let (outer, _) = der_value(&der, 0x30)?;
    let (_, rest) = der_value(outer, 0x30)?;
    let (bits, _) = der_value(rest, 0x03)?;
    bits.strip_prefix(&[0]).map(<[u8]>::to_vec)
}

/// The content of a DER value with this tag, and what follows it.
fn der_value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let digits = rest.get(..count).filter(|d| d.len() <= 4)?;
        (digits.iter().fold(0usize, |len, &d| len << 8 | usize::from(d)), &rest[count..])
    };
    rest.split_at_checked(len)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes().filter(|b| !b.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
pub(super) mod tests;
