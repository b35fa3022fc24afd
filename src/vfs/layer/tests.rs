//! Tests of the tar reader and the index: tars of GNU tar, and hostile ones made here.

use std::io::Write;
use std::process::Command;

use super::*;
use crate::vfs::overlay::{Limits, Overlay};
use crate::vfs::testing::{Paths, Random};
use crate::vfs::{FileType, Seek, mode};

/// Writes tars by hand, so that they can be wrong.
#[derive(Default)]
pub(crate) struct Maker(pub(crate) Vec<u8>);

impl Maker {
    pub(crate) fn header(&mut self, name: &[u8], kind: u8, size: u64, link: &[u8]) -> &mut Maker {
        let mut h = [0u8; 512];
        h[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        h[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
        h[108..115].copy_from_slice(b"0000012");
        h[116..123].copy_from_slice(b"0000013");
        h[124..135].copy_from_slice(format!("{:011o}", size.min(0o77_777_777_777)).as_bytes());
        h[136..147].copy_from_slice(b"00000000144");
        h[156] = kind;
        h[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        h[257..265].copy_from_slice(b"ustar\x0000");
        h[329..336].copy_from_slice(b"0000001");
        h[337..344].copy_from_slice(b"0000003");
        self.0.extend_from_slice(&h);
        self.seal(0)
    }

    /// Sets the checksum of the header `back` blocks before the last.
    pub(crate) fn seal(&mut self, back: usize) -> &mut Maker {
        let at = self.0.len() - 512 * (back + 1);
        let h = &mut self.0[at..at + 512];
        h[148..156].fill(b' ');
        let sum: u32 = h.iter().map(|&b| u32::from(b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }

    pub(crate) fn body(&mut self, bytes: &[u8]) -> &mut Maker {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(&mut self, name: &str, data: &[u8]) -> &mut Maker {
        self.header(name.as_bytes(), b'0', data.len() as u64, b"").body(data)
    }

    pub(crate) fn dir(&mut self, name: &str) -> &mut Maker {
        self.header(name.as_bytes(), b'5', 0, b"")
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> &mut Maker {
        self.header(name.as_bytes(), b'2', 0, target.as_bytes())
    }

    pub(crate) fn hard(&mut self, name: &str, target: &str) -> &mut Maker {
        self.header(name.as_bytes(), b'1', 0, target.as_bytes())
    }

    pub(crate) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Maker {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len += 1;
            }
            data.extend(format!("{len} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw_pax(b'x', &data)
    }

    pub(super) fn raw_pax(&mut self, kind: u8, data: &[u8]) -> &mut Maker {
        self.header(b"pax", kind, data.len() as u64, b"").body(data)
    }

    pub(crate) fn end(&self) -> Vec<u8> {
        let mut tar = self.0.clone();
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    pub(crate) fn layer(&self) -> Layer {
        layer(&self.end()).expect("layer")
    }
}

pub(super) fn layer(tar: &[u8]) -> std::result::Result<Layer, TarError> {
    let index = Index::build(tar, TarLimits::default())?;
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(tar).expect("write");
    let jumped = Index::build_from_file(&file, TarLimits::default())?;
    assert_eq!(index.as_bytes(), jumped.as_bytes());
    let stored = Index::from_bytes(index.as_bytes().to_vec()).expect("index");
    Ok(Layer::new(Arc::new(stored), file).expect("layer"))
}

pub(super) fn overlay(layer: Layer) -> Overlay {
    Overlay::new(vec![layer], Limits::default()).expect("overlay")
}

pub(super) fn problem(tar: &[u8]) -> TarProblem {
    match layer(tar) {
        Ok(_) => panic!("accepted"),
        Err(e) => {
            assert!(!e.to_string().is_empty());
            e.problem
        }
    }
}

macro_rules! refused {
    ($tar:expr, $problem:pat) => {
        let problem = problem($tar);
        assert!(matches!(problem, $problem), "{problem:?}");
    };
}

#[test]
fn hostile_paths_are_refused() {
    let m = Maker::default;
    refused!(&m().file("../x", b"").end(), TarProblem::ParentDir);
    refused!(&m().file("a/../../x", b"").end(), TarProblem::ParentDir);
    refused!(&m().file("/..", b"").end(), TarProblem::ParentDir);
    refused!(&m().dir("..").end(), TarProblem::ParentDir);
    refused!(&m().file("a", b"").hard("b", "../etc/passwd").end(), TarProblem::ParentDir);
    refused!(&m().hard("b", "").end(), TarProblem::HardLink);
    refused!(&m().dir("d").hard("b", "d").end(), TarProblem::HardLink);
    refused!(&m().hard("b", "/").end(), TarProblem::HardLink);
    refused!(&m().file("", b"").end(), TarProblem::BadPath);
    refused!(&m().file("./", b"").symlink("/", "x").end(), TarProblem::BadPath);
    refused!(&m().pax(&[("path", b"a\0b")]).file("x", b"").end(), TarProblem::BadPath);
    refused!(&m().pax(&[("path", &[b'n'; 256])]).file("x", b"").end(), TarProblem::NameTooLong);
    refused!(
        &m().pax(&[("path", "d/".repeat(300).as_bytes())]).file("x", b"").end(),
        TarProblem::PathTooLong
    );
    refused!(
        &m().pax(&[("path", "d/".repeat(3000).as_bytes())]).file("x", b"").end(),
        TarProblem::PathTooLong
    );
    refused!(&m().pax(&[("linkpath", &[b'l'; 5000])]).symlink("x", "y").end(), TarProblem::PathTooLong);
    refused!(&m().symlink("x", "").end(), TarProblem::BadPath);
    refused!(&m().file("f", b"").file("f/x", b"").end(), TarProblem::NotDirectory);
    refused!(&m().symlink("a", "b").symlink("b", "a").file("a/x", b"").end(), TarProblem::LinkLoop);
    refused!(&m().file(".wh.", b"").end(), TarProblem::Whiteout);
    refused!(&m().file("d/.wh...", b"").end(), TarProblem::Whiteout);
}

#[test]
fn hostile_headers_are_refused() {
    let m = Maker::default;
    let mut bad = m().file("f", b"x").end();
    bad[0] ^= 1;
    refused!(&bad, TarProblem::Checksum);
    refused!(b"<!DOCTYPE html><html>", TarProblem::Truncated);
    refused!(&[b'x'; 1024], TarProblem::Checksum);
    let good = m().file("f", &[7; 2000]).end();
    for cut in [100, 512 + 1, 512 + 1999, 2000, 2559] {
        refused!(&good[..cut], TarProblem::Truncated);
    }
    refused!(&m().pax(&[("path", b"x")]).end(), TarProblem::Truncated);
    // One zero block, then more.
    let mut lone = m().file("f", b"").0.clone();
    lone.resize(lone.len() + 512, 0);
    lone.extend(m().file("g", b"").end());
    refused!(&lone, TarProblem::Checksum);
    for kind in [b'D', b'M', b'V', b'Q', b'A', 0xff] {
        refused!(&m().header(b"x", kind, 0, b"").end(), TarProblem::Unsupported(_));
    }
    // A size where there is no data: some readers would skip it.
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        refused!(&m().header(b"x", kind, 512, b"y").body(&[0; 512]).end(), TarProblem::UnexpectedData);
    }
    let mut number = m().file("f", b"").0.clone();
    number[108..116].copy_from_slice(b"00x0012\0");
    refused!(&Maker(number).seal(0).end(), TarProblem::Number("uid"));
    // An owner beyond 32 bits must not wrap to root.
    let mut owner = m().file("f", b"").0.clone();
    owner[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
    refused!(&Maker(owner).seal(0).end(), TarProblem::Number("uid"));
    refused!(&m().pax(&[("uid", b"4294967296")]).file("f", b"").end(), TarProblem::Number("uid"));
    refused!(&m().pax(&[("gid", b"4294967295")]).file("f", b"").end(), TarProblem::Number("gid"));
    let mut size = m().file("f", b"").0.clone();
    size[124..136].copy_from_slice(&[0xff; 12]);
    refused!(&Maker(size).seal(0).end(), TarProblem::Number("size"));
    let mut size = m().file("f", b"").0.clone();
    size[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    refused!(&Maker(size).seal(0).end(), TarProblem::Number("size"));
    for bad in [
        &b"5 a=b\n"[..],
        b"99 a=b\n",
        b"x a=b\n",
        b"6 a=b\nx",
        b"4 ab\n",
        b"5 =ab\n",
        b" 6 a=b\n",
        b"0 a=b\n",
    ] {
        refused!(&m().raw_pax(b'x', bad).file("f", b"").end(), TarProblem::Pax);
    }
    refused!(&m().header(b"pax", b'x', 1 << 40, b"").end(), TarProblem::Extension(_));
    refused!(&m().header(b"long", b'L', (1 << 20) + 1, b"").end(), TarProblem::Extension(_));
    refused!(&m().raw_pax(b'g', b"10 size=1\n").file("f", b"").end(), TarProblem::Unsupported(b'g'));
    refused!(&m().pax(&[("SCHILY.xattr.user.x", &[0; 70000])]).file("f", b"").end(), TarProblem::Pax);
}

#[test]
fn the_size_of_a_pax_header_decides_for_data_and_skipping_alike() {
    // The ustar size says 0: a reader that believes it would take the data, itself a tar, for entries.
    let inner = Maker::default().file("smuggled", b"evil").end();
    let mut m = Maker::default();
    m.pax(&[("size", inner.len().to_string().as_bytes())]).header(b"outer", b'0', 0, b"").body(&inner);
    m.file("after", b"ok");
    let fs = overlay(m.layer());
    let fs = Paths(&fs);
    assert_eq!(fs.list("", 10), Ok(vec!["after".into(), "outer".into()]));
    assert_eq!(fs.read("outer"), Ok(inner));
    assert_eq!(fs.read("after"), Ok(b"ok".to_vec()));
    // And the other way round.
    let mut m = Maker::default();
    m.pax(&[("size", b"0")]).header(b"outer", b'0', 512, b"").file("inner", b"x");
    let fs = overlay(m.layer());
    assert_eq!(Paths(&fs).list("", 10), Ok(vec!["inner".into(), "outer".into()]));
}

#[test]
fn caps_hold() {
    let limits = TarLimits { entries: 100, metadata: 5000, ..TarLimits::default() };
    let mut many = Maker::default();
    for i in 0..200 {
        many.file(&format!("f{i}"), b"");
    }
    // Directories that are only implied count, too.
    let mut deep = Maker::default();
    for i in 0..3 {
        deep.file(&format!("{i}/{}x", "d/".repeat(40)), b"");
    }
    let mut fat = Maker::default();
    for i in 0..50 {
        fat.pax(&[("SCHILY.xattr.user.x", &[1; 500])]).file(&format!("f{i}"), b"");
    }
    for tar in [many, deep, fat] {
        let problem = Index::build(&tar.end()[..], limits).expect_err("refused").problem;
        assert!(matches!(problem, TarProblem::TooLarge), "{problem:?}");
        tar.layer();
    }
}

#[test]
fn names_are_normalised_and_the_last_entry_wins() {
    let mut m = Maker::default();
    m.dir("./").file("./a//b/./c", b"1").file("/a/b/c", b"22").dir("a/").symlink("abs", "/etc/../x");
    m.file("was-file", b"").dir("was-file").file("was-file/in", b"").dir("was-dir").file("was-dir/in", b"");
    m.file("was-dir", b"now");
    m.header(b"null", b'3', 0, b"").header(b"old-dir/", 0, 0, b"");
    let fs = overlay(m.layer());
    let fs = Paths(&fs);
    let all = vec!["a", "abs", "null", "old-dir", "was-dir", "was-file"];
    assert_eq!(fs.list("", 1), Ok(all.into_iter().map(String::from).collect()));
    assert_eq!(fs.read("a/b/c"), Ok(b"22".to_vec()));
    assert_eq!(fs.read("was-dir"), Ok(b"now".to_vec()));
    assert_eq!(fs.readlink("abs"), Ok("/etc/../x".into()));
    assert_eq!(fs.list("was-file", 5), Ok(vec!["in".into()]));
    let null = fs.attr("null").expect("attr");
    assert_eq!((null.file_type(), null.rdev), (FileType::Char, 0x103));
    assert_eq!(fs.attr("old-dir").expect("attr").file_type(), FileType::Dir);
    let a = fs.attr("a").expect("attr");
    assert_eq!((a.uid, a.gid, a.mode & mode::PERM, a.mtime.secs, a.nlink), (10, 11, 0o755, 100, 3));
}

#[test]
fn links_within_a_layer_are_resolved() {
    let mut m = Maker::default();
    m.symlink("lib", "usr/lib").file("lib/a", b"A").symlink("up", "/../../x/y").file("up/b", b"B");
    m.hard("not/there/yet", "lib/a").hard("again", "usr/lib/a").hard("again", "again");
    let fs = overlay(m.layer());
    let fs = Paths(&fs);
    assert_eq!(fs.read("usr/lib/a"), Ok(b"A".to_vec()));
    assert_eq!(fs.read("x/y/b"), Ok(b"B".to_vec()));
    let (one, other) = (fs.attr("not/there/yet").expect("attr"), fs.attr("again").expect("attr"));
    assert_eq!((one.ino, one.nlink), (other.ino, 3));
}

fn gnu_tar(dir: &std::path::Path, args: &[&str]) -> Vec<u8> {
    let out =
        Command::new("tar").current_dir(dir).args(args).args(["-cf", "-", "."]).output().expect("tar runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// The same tree packed by GNU tar in each of its formats reads as the tree itself.
#[cfg(target_os = "linux")]
#[test]
fn tars_of_gnu_tar_read_as_the_tree_they_are_of() {
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

    use crate::vfs::{HostDir, HostDirOptions};

    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: no tar on this host");
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("a/b/c")).expect("mkdir");
    let long = format!("{}/{}", "l".repeat(120), "m".repeat(130));
    std::fs::create_dir_all(at(&long)).expect("mkdir");
    std::fs::write(at(&format!("{long}/{}", "n".repeat(200))), "long").expect("write");
    std::fs::write(at("a/f"), vec![5; 100_000]).expect("write");
    std::fs::write(at("a/empty"), "").expect("write");
    std::fs::set_permissions(at("a/f"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    std::fs::hard_link(at("a/f"), at("a/b/hard")).expect("link");
    symlink("t".repeat(300), at("a/long-link")).expect("symlink");
    symlink("../a/f", at("a/link")).expect("symlink");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("a/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("mkfifo");
    let sparse = std::fs::File::create(at("sparse")).expect("create");
    for i in 0..40 {
        sparse.write_all_at(&[i as u8 + 1; 5000], i * 100_000 + 4096).expect("write");
    }
    sparse.set_len(40 << 20).expect("set_len");
    let has_xattr =
        rustix::fs::setxattr(at("a/f"), "user.note", b"x\0y\n=", rustix::fs::XattrFlags::empty()).is_ok();

    let host = HostDir::new(dir.path(), HostDirOptions::default()).expect("host dir");
    let mut want = Vec::new();
    Paths(&host).dump("", &mut want);
    for args in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let layer =
            layer(&gnu_tar(dir.path(), args)).unwrap_or_else(|e| panic!("{args:?}: {e}: {:?}", e.problem));
        let fs = overlay(layer);
        let fs = Paths(&fs);
        let mut got = Vec::new();
        fs.dump("", &mut got);
        assert_eq!(got, want, "{args:?}");
        let (mine, theirs) = (fs.attr("a/f").expect("attr"), Paths(&host).attr("a/f").expect("attr"));
        assert_eq!((mine.uid, mine.gid, mine.mtime.secs), (theirs.uid, theirs.gid, theirs.mtime.secs));
        if args.contains(&"--xattrs") {
            assert_eq!(mine.mtime, theirs.mtime);
            if has_xattr {
                assert_eq!(fs.xattr("a/f", "user.note"), Ok(b"x\0y\n=".to_vec()));
            }
        }
        if args.contains(&"--sparse") {
            let blocks = fs.attr("sparse").expect("attr").blocks;
            assert!(blocks < 40 * 64, "{args:?} {blocks}");
            assert_eq!(fs.seek("sparse", Seek::Data(0)), Ok(4096), "{args:?}");
            assert!(fs.seek("sparse", Seek::Hole(4096)).expect("hole") <= 12288);
        }
    }
    let ustar = gnu_tar(&at("a"), &["--format=ustar", "--exclude=long-link"]);
    let fs = overlay(layer(&ustar).expect("layer"));
    assert_eq!(Paths(&fs).read("b/hard").map(|b| b.len()), Ok(100_000));
    let v7 = gnu_tar(&at("a"), &["--format=v7", "--exclude=long-link", "--exclude=fifo"]);
    let fs = overlay(layer(&v7).expect("layer"));
    assert_eq!(Paths(&fs).read("f").map(|b| b.len()), Ok(100_000));
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let pax = |map: &str, size: &str, stored: usize| {
        let mut m = Maker::default();
        m.pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())]);
        m.file("f", &vec![1; stored]).end()
    };
    layer(&pax("0,512,1024,512", "4096", 1024)).expect("layer");
    for (map, size, stored) in [
        ("0,512,256,512", "4096", 1024),
        ("1024,512,0,512", "4096", 1024),
        ("0,512,1024,512", "4096", 1000),
        ("0,512,1024,512", "1300", 1024),
        ("0,512,1024", "4096", 512),
        ("0,18446744073709551615", "4096", 1024),
        ("1,18446744073709551615", "4096", 1024),
        ("0,x", "4096", 1024),
        ("", "99999999999999999999999", 0),
        ("", "18446744073709551615", 0),
    ] {
        refused!(&pax(map, size, stored), TarProblem::Sparse);
    }
    for text in [&b"x"[..], b"99999999999999999999\n", b"3\n1\n", b"\n"] {
        let mut m = Maker::default();
        m.pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.size", b"10"), ("GNU.sparse.name", b"f")]);
        refused!(&m.file("f", text).end(), TarProblem::Sparse);
    }
}

#[test]
fn damaged_indexes_are_refused_and_never_panic() {
    let mut m = Maker::default();
    m.dir("d").file("d/f", b"data").symlink("d/l", "f").hard("h", "d/f").file("d/.wh.gone", b"");
    m.pax(&[("SCHILY.xattr.user.a", b"v"), ("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"1,2")])
        .file("s", b"xy");
    let layer = m.layer();
    let good = layer.index().as_bytes().to_vec();
    assert!(matches!(Index::from_bytes(Vec::new()), Err(IndexError::Invalid(_))));
    for cut in 0..good.len() {
        assert!(Index::from_bytes(good[..cut].to_vec()).is_err(), "{cut}");
    }
    let mut random = Random(4711);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..=random.below(3) {
            let at = 16 + random.below(bad.len() as u64 - 16) as usize;
            bad[at] = [0, 1, 0xff, 0x7f, random.below(256) as u8][random.below(5) as usize];
        }
        assert!(bad == good || Index::from_bytes(bad.clone()).is_err(), "a wrong checksum is seen");
        // A forger would set the checksum right; then the checks behind it must hold.
        let crc = crc32fast::hash(&bad[16..]);
        bad[12..16].copy_from_slice(&crc.to_le_bytes());
        let Ok(index) = Index::from_bytes(bad) else { continue };
        accepted += 1;
        if index.tar_len() != layer.index().tar_len() {
            continue;
        }
        let file = layer.tar.try_clone().expect("clone");
        let Ok(fs) = Overlay::new(vec![Layer::new(Arc::new(index), file).expect("layer")], Limits::default())
        else {
            continue;
        };
        walk(&Paths(&fs), "", 0);
    }
    assert!(accepted > 100, "{accepted}");
}

/// Touches everything, whatever the answers.
pub(super) fn walk(fs: &Paths<'_>, path: &str, depth: usize) {
    assert!(depth < 10);
    let Ok(attr) = fs.attr(path) else { return };
    let _ = fs.readlink(path).is_ok();
    if attr.size < 1 << 20 {
        let _ = fs.read(path).is_ok();
    }
    let _ = fs.xattrs(path).is_ok();
    let _ = fs.seek(path, Seek::Data(0)).is_ok();
    if attr.file_type() == FileType::Dir {
        for name in fs.list(path, 7).expect("list") {
            walk(fs, &format!("{path}/{name}"), depth + 1);
        }
    }
}

#[test]
fn a_tar_of_another_length_is_refused() {
    let mut m = Maker::default();
    let layer = m.file("f", b"data").layer();
    let file = tempfile::tempfile().expect("file");
    file.set_len(100).expect("set_len");
    let error = Layer::new(layer.index.clone(), file).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

/// Prints what opening a large layer costs.
#[test]
fn a_large_layer_opens_quickly() {
    let mut m = Maker::default();
    for i in 0..20_000 {
        m.file(&format!("usr/share/dir-{}/file-{i}", i % 1000), b"x");
    }
    let index = Index::build(&m.end()[..], TarLimits::default()).expect("index");
    let start = std::time::Instant::now();
    let again = Index::from_bytes(index.as_bytes().to_vec()).expect("index");
    println!("{} names, {} bytes, opened in {:?}", again.names(), again.as_bytes().len(), start.elapsed());
    assert_eq!(again.names(), 21_002);
}
