use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::super::super::fixtures;
use super::super::Provider;
use super::*;

const TEST_KEY_NAME: &str = "test@example.rsa.pub";
const TEST_KEY: &str = include_str!("test-key.pub");

fn sign(bytes: &[u8]) -> Vec<u8> {
    let key = signature::RsaKeyPair::from_der(include_bytes!("test-key.der")).unwrap();
    let mut out = vec![0; key.public().modulus_len()];
    let random = ring::rand::SystemRandom::new();
    key.sign(&signature::RSA_PKCS1_SHA256, &random, bytes, &mut out).unwrap();
    out
}

fn signed(bytes: &[u8]) -> Vec<u8> {
    let name = format!(".SIGN.RSA256.{TEST_KEY_NAME}");
    let mut out = fixtures::gzip(&fixtures::tar(&[(&name, &sign(bytes))], false));
    out.extend_from_slice(bytes);
    out
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| char::from(DIGITS[bits as usize & 63]);
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, &b| bits << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        out.extend((0..=chunk.len()).map(|i| digit(bits >> (18 - 6 * i))));
        out.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    out
}

/// A package and its stanza in the index.
fn package(name: &str, version: &str, data_tar: &[u8]) -> (Vec<u8>, String) {
    let data = fixtures::gzip(data_tar);
    let hash: String =
        digest::digest(&digest::SHA256, &data).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let info = format!("pkgname = {name}\npkgver = {version}\ndatahash = {hash}\n");
    let control = fixtures::gzip(&fixtures::tar(&[(".PKGINFO", info.as_bytes())], false));
    let checksum = encode_base64(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &control).as_ref());
    let mut apk = signed(&control);
    apk.extend_from_slice(&data);
    let stanza = format!("C:Q1{checksum}\nP:{name}\nV:{version}\nA:x86_64\nS:{}\nI:1\nT:x\n\n", apk.len());
    (apk, stanza)
}

/// A mirror with a kernel and a busybox, by path.
pub(in crate::machine::boot::provider) fn repository() -> HashMap<String, Vec<u8>> {
    let (kernel, first) = package("linux-virt", "6.12.9-r0", &fixtures::kernel_tar("", "6.12.9-0-virt"));
    let program = fixtures::busybox();
    let data = fixtures::tar(&[("bin/busybox.static", &program)], true);
    let (busybox, second) = package("busybox-static", "1.37.0-r12", &data);
    let index =
        fixtures::tar(&[("DESCRIPTION", b"v1"), ("APKINDEX", format!("{first}{second}").as_bytes())], true);
    HashMap::from([
        (format!("/alpine/{BRANCH}/APKINDEX.tar.gz"), signed(&fixtures::gzip(&index))),
        (format!("/alpine/{BRANCH}/linux-virt-6.12.9-r0.apk"), kernel),
        (format!("/alpine/{BRANCH}/busybox-static-1.37.0-r12.apk"), busybox),
    ])
}

/// An HTTP server on the loopback, and the paths it was asked for.
pub(in crate::machine::boot::provider) struct Mirror {
    pub(in crate::machine::boot::provider) url: String,
    pub(in crate::machine::boot::provider) asked: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    pub(in crate::machine::boot::provider) fn serve(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/alpine", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (files, log) = (Arc::new(files), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, log) = (files.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &files, &log));
            }
        });
        Self { url, asked }
    }

    pub(in crate::machine::boot::provider) fn provider(&self, cache: &std::path::Path) -> Provider {
        Provider::bare()
            .use_apt(false)
            .with_cache_dir(cache)
            .with_alpine_mirror(&self.url)
            .with_alpine_key(TEST_KEY_NAME, TEST_KEY)
    }
}

fn answer(stream: TcpStream, files: &HashMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(&stream);
    let mut request = String::new();
    lines.read_line(&mut request).unwrap();
    let mut header = String::new();
    while lines.read_line(&mut header).unwrap() > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let (status, body) = match files.get(&path) {
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", b"".as_slice()),
    };
    log.lock().unwrap().push(path);
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let mut stream = &stream;
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn quiet(_: Progress<'_>) {}

#[test]
fn a_kernel_and_busybox_from_a_mirror_once() {
    let cache = tempfile::tempdir().unwrap();
    let mirror = Mirror::serve(repository());
    let provider = mirror.provider(cache.path());
    let phases = std::cell::RefCell::new(Vec::new());
    let kernel = provider.kernel(&|p| phases.borrow_mut().push(p.phase)).unwrap();
    assert_eq!(kernel.release, "6.12.9-0-virt");
    assert_eq!(kernel.origin, "Alpine linux-virt 6.12.9-r0");
    let modules = kernel.modules.resolve(&["virtio-mmio", "fuse"]).unwrap();
    assert_eq!(modules.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["virtio", "virtio_mmio"]);
    let mut phases = phases.into_inner();
    phases.dedup();
    assert_eq!(phases, [Phase::Index, Phase::Download, Phase::Unpack]);
    assert_eq!(provider.busybox(&quiet).unwrap(), fixtures::busybox());

    let before = mirror.asked.lock().unwrap().len();
    assert_eq!(before, 4);
    provider.kernel(&|_| panic!("nothing to be done")).unwrap();
    provider.clone().offline(true).busybox(&quiet).unwrap();
    // A version that is there already is not fetched either.
    assert_eq!(provider.clone().with_version("6.12").kernel(&quiet).unwrap().release, "6.12.9-0-virt");
    assert_eq!(mirror.asked.lock().unwrap().len(), before);
}

#[test]
fn nothing_that_was_tampered_with_is_used() {
    let whole = repository();
    let path = |file: &str| format!("/alpine/{BRANCH}/{file}");
    let apk = path("linux-virt-6.12.9-r0.apk");
    let index = path("APKINDEX.tar.gz");
    let flip = |file: &str, at: usize| {
        let mut files = whole.clone();
        files.get_mut(file).unwrap()[at] ^= 1;
        files
    };
    // Where the signature, the control part and the data of the package are.
    let bytes = &whole[&apk];
    let control = bytes.len() - member(bytes, MAX_SMALL_PART).unwrap().1.len();
    let data = bytes.len() - member(&bytes[control..], MAX_SMALL_PART).unwrap().1.len();
    let signed_part = whole[&index].len() - member(&whole[&index], MAX_SMALL_PART).unwrap().1.len();
    let mut longer = whole.clone();
    longer.get_mut(&apk).unwrap().push(0);
    let cases = [
        ("control", flip(&apk, control + 4)),
        ("data", flip(&apk, data + 4)),
        ("end of the data", flip(&apk, bytes.len() - 1)),
        ("length", longer),
        // In the header's time stamp, so that it still unpacks.
        ("index", flip(&index, signed_part + 4)),
    ];
    for (what, files) in cases {
        let cache = tempfile::tempdir().unwrap();
        let error = Mirror::serve(files).provider(cache.path()).kernel(&quiet).unwrap_err().to_string();
        assert!(error.contains("integrity check"), "{what}: {error}");
        let left: Vec<_> = std::fs::read_dir(cache.path().join("entries")).unwrap().collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
}

#[test]
fn an_index_by_an_unknown_key_or_none_is_refused() {
    let files = repository();
    let cache = tempfile::tempdir().unwrap();
    let mirror = Mirror::serve(files.clone());
    let stranger =
        Provider::bare().use_apt(false).with_cache_dir(cache.path()).with_alpine_mirror(&mirror.url);
    let error = stranger.kernel(&quiet).unwrap_err().to_string();
    assert!(error.contains("test@example.rsa.pub, which is not trusted"), "{error}");

    let index = format!("/alpine/{BRANCH}/APKINDEX.tar.gz");
    let mut unsigned = files;
    let bare = member(&unsigned[&index], MAX_SMALL_PART).unwrap().1.to_vec();
    unsigned.insert(index, bare);
    let error = Mirror::serve(unsigned).provider(cache.path()).kernel(&quiet).unwrap_err().to_string();
    assert!(error.contains("not signed"), "{error}");
}

#[test]
fn what_the_mirror_lacks_is_said() {
    let cache = tempfile::tempdir().unwrap();
    let empty = Mirror::serve(HashMap::new());
    let error = empty.provider(cache.path()).kernel(&quiet).unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("CC_KERNEL"), "{error}");
    let mirror = Mirror::serve(repository());
    let other = mirror.provider(cache.path()).with_version("5.10").kernel(&quiet).unwrap_err().to_string();
    assert!(other.contains("Alpine has 6.12.9-r0, not 5.10"), "{other}");
}

#[test]
fn a_sha1_signature_as_the_cdn_has_them() {
    // Made with `openssl dgst -sha1 -sign`.
    let signature = "983d348ec32d1a372d3a4dbb44ab3684b360d76a30954058bc2e1ecda06abe37af9eba19750c172d71559c90d426984d\
        0516eb84809cccd9b368e06ca1d5512f521bb4793f3bc151fbc9977485b2d122c38787741feb872f44496d94ce805db770a9e764ea62\
        3f99f85c29a6250d541361016c81270174305155973f3c4973cbff7e3f36dcb1c9e68dccc13f6b63d32dc32ddb811d36bea33d47e806\
        50d883f18aa97cb4d890db91cd09b601880d63198219a0360b6e0cfec6767bafc3c74a384834c844d905431d5e65c7f430d496a7e8c2\
        190bf2dc4c1d52a835fc63faf71e2dca27e7a2673c7c2d316511157a784da988c4ec0e1b464d2eeb10260f81aaa3";
    let signature: Vec<u8> = (0..signature.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&signature[i..i + 2], 16).unwrap())
        .collect();
    let key = signature::UnparsedPublicKey::new(
        &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        public_key(TEST_KEY).unwrap(),
    );
    key.verify(b"signed by the test key\n", &signature).unwrap();
    key.verify(b"signed by the test key!", &signature).unwrap_err();
}

#[test]
fn the_built_in_key_is_an_rsa_key_of_4096_bits() {
    let key = public_key(KEY).unwrap();
    let (numbers, rest) = der_value(&key, 0x30).unwrap();
    let (modulus, exponent) = der_value(numbers, 2).unwrap();
    assert!(rest.is_empty());
    assert_eq!((modulus.len(), modulus[0], modulus[1] >> 7), (513, 0, 1));
    assert_eq!(der_value(exponent, 2).unwrap().0, [1, 0, 1]);
}

#[test]
fn an_index_is_read_leniently_and_names_strictly() {
    let index = "C:Q1AA==\nP:x\nV:1/../2\nS:1\n\nrubbish\n\nC:Q1AA==\nP:x\nV:1.2-r3\nS:17\n\n";
    let found = find(index, "x").unwrap();
    assert_eq!((found.version.as_str(), found.size), ("1.2-r3", 17));
    assert!(find(index, "y").is_none());
    assert!(find("P:x\n", "x").is_none());
}
