//! Layers that somebody made to do harm: whatever they hold, they are refused or read as what they say, in bounded
//! time and memory.

use proptest::prelude::*;

use super::tests::{Maker, layer, overlay, problem, walk};
use super::*;
use crate::vfs::overlay::{Limits, Overlay, OverlayError};
use crate::vfs::testing::Paths;
use crate::vfs::{FileType, mode};

/// A small layer with one of everything.
fn composite() -> Maker {
    let mut m = Maker::default();
    m.dir("d").file("d/f", b"data").symlink("d/l", "f").hard("h", "d/f").file("d/.wh.gone", b"");
    m.file("o/.wh..wh..opq", b"").header(b"null", b'3', 0, b"").header(b"fifo", b'6', 0, b"");
    m.pax(&[("path", &[b'n'; 200]), ("SCHILY.xattr.user.a", b"v"), ("mtime", b"12.5")]).file("x", &[1; 700]);
    m.pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"1,2,4096,3")]).file("s", b"xyzab");
    m.header(b"././@LongLink", b'L', 131, b"").body(&[b'k'; 131]).file("short", b"long name");
    m
}

#[test]
fn r6_5_links_never_lead_out() {
    let m = Maker::default;
    for target in ["../x", "a/../../x", "/../x", "..", "d/.."] {
        let problem = problem(&m().dir("d").file("a", b"").hard("b", target).end());
        assert!(matches!(problem, TarProblem::ParentDir), "{target}: {problem:?}");
    }
    // Symbolic links may say what they like: they are the client's to follow, in the client's own root.
    let mut links = m();
    links.symlink("abs", "/etc/passwd").symlink("up", "../../../../etc/passwd").symlink("self", "self");
    links.symlink("a", "b").symlink("b", "a");
    let fs = overlay(links.layer());
    let fs = Paths(&fs);
    for (name, target) in [("abs", "/etc/passwd"), ("up", "../../../../etc/passwd"), ("self", "self")] {
        assert_eq!(fs.readlink(name), Ok(target.into()));
    }
    // A path through them stays in the layer.
    let mut through = m();
    through.symlink("abs", "/etc").symlink("up", "../../../..").file("abs/x", b"1").file("up/y", b"2");
    let fs = overlay(through.layer());
    assert_eq!(Paths(&fs).list("", 5), Ok(["abs", "etc", "up", "y"].map(String::from).to_vec()));
    assert_eq!(Paths(&fs).read("etc/x"), Ok(b"1".to_vec()));
    // Circles below do not catch the layer above: what it puts there replaces them.
    let mut circle = m();
    circle.symlink("a", "b").symlink("b", "a").symlink("s", "s");
    let mut above = m();
    above.file("a/x", b"x").file("s/y", b"y");
    let fs = Overlay::new(vec![circle.layer(), above.layer()], Limits::default()).expect("overlay");
    assert_eq!(Paths(&fs).read("a/x"), Ok(b"x".to_vec()));
    assert_eq!(Paths(&fs).read("s/y"), Ok(b"y".to_vec()));
    assert_eq!(Paths(&fs).readlink("b"), Ok("a".into()));
}

#[test]
fn r6_4_hard_links_before_beyond_and_without_their_target() {
    let m = Maker::default;
    let refused = |layers: Vec<Layer>| Overlay::new(layers, Limits::default()).expect_err("refused");
    // Before its target: at that point of the layer there is no such file.
    let mut early = m();
    early.hard("b", "a").file("a", b"late");
    assert!(matches!(refused(vec![early.layer()]), OverlayError::HardLink { layer: 0, .. }));
    // To a directory, a whiteout, through a file, or to nothing of a lower layer.
    let mut low = m();
    low.dir("dir").file("file", b"low");
    for target in ["dir", "none", "file/x", ".wh.x"] {
        let mut high = m();
        high.hard("b", target);
        let error = refused(vec![low.layer(), high.layer()]);
        assert!(matches!(error, OverlayError::HardLink { layer: 1, .. }), "{target}: {error}");
    }
    // A link to a name that this layer replaces later keeps the file that was meant.
    let mut replaced = m();
    replaced.file("a", b"one").hard("b", "a").file("a", b"two").hard("c", "a");
    let fs = overlay(replaced.layer());
    let fs = Paths(&fs);
    assert_eq!(
        (fs.read("a"), fs.read("b"), fs.read("c")),
        (Ok(b"two".to_vec()), Ok(b"one".to_vec()), Ok(b"two".to_vec()))
    );
    assert_eq!((fs.attr("a").map(|a| a.nlink), fs.attr("b").map(|a| a.nlink)), (Ok(2), Ok(1)));
}

#[test]
fn r6_4_whiteout_tricks() {
    let m = Maker::default;
    for bad in [".wh.", ".wh..", "d/.wh...", ".wh.x/y", "d/.wh.x/y/z"] {
        let problem = problem(&m().file(bad, b"").end());
        assert!(matches!(problem, TarProblem::Whiteout), "{bad}: {problem:?}");
    }
    // A whiteout is one whatever the type of its entry, and the bookkeeping of another driver is no content.
    let mut low = m();
    for name in ["a", "b", "c", "d/e", "keep"] {
        low.file(name, b"low");
    }
    let mut high = m();
    high.dir(".wh.a").symlink(".wh.b", "x").header(b".wh.c", b'6', 0, b"").file(".wh..wh.keep", b"");
    high.file(".wh..wh.plnk/12.34", b"x").dir(".wh..wh.aufs").file("d/.wh..wh.e", b"");
    let fs = Overlay::new(vec![low.layer(), high.layer()], Limits::default()).expect("overlay");
    assert_eq!(Paths(&fs).list("", 3), Ok(["d", "keep"].map(String::from).to_vec()));
    assert_eq!(Paths(&fs).list("d", 3), Ok(vec!["e".into()]));
    // Nothing below: whiteouts and opaque markers hide nothing of their own layer, in whatever order.
    let mut alone = m();
    alone.file("a", b"1").file(".wh.a", b"").file("d/.wh.x", b"").file("d/x", b"2").file(".wh.d", b"");
    alone.file("d/.wh..wh..opq", b"").file(".wh..wh..opq", b"").file("z", b"3");
    let fs = overlay(alone.layer());
    assert_eq!(Paths(&fs).list("", 3), Ok(["a", "d", "z"].map(String::from).to_vec()));
    assert_eq!(Paths(&fs).read("d/x"), Ok(b"2".to_vec()));
    // An opaque root hides every layer below, and only those.
    let mut top = m();
    top.file("after", b"4");
    let fs = Overlay::new(vec![low.layer(), alone.layer(), top.layer()], Limits::default()).expect("overlay");
    assert_eq!(Paths(&fs).list("", 3), Ok(["a", "after", "d", "z"].map(String::from).to_vec()));
}

#[test]
fn device_nodes_are_attributes_and_nothing_else() {
    let mut m = Maker::default();
    m.header(b"null", b'3', 0, b"").header(b"sda", b'4', 0, b"");
    let fs = overlay(m.layer());
    let fs = Paths(&fs);
    assert_eq!(fs.attr("sda").map(|a| (a.file_type(), a.rdev)), Ok((FileType::Block, 0x103)));
    assert_eq!(fs.open("null", crate::vfs::open::RDONLY, |_, _| Ok(())), Err(Errno::ENXIO));
    assert_eq!(fs.attr("null").expect("attr").mode & mode::FMT, mode::CHAR);
    let mut odd = Maker::default();
    odd.header(b"null", b'3', 0, b"");
    odd.0[329..337].copy_from_slice(b"7777777\0");
    assert!(matches!(problem(&odd.seal(0).end()), TarProblem::Number("device")));
}

#[test]
fn extension_headers_are_bounded_together() {
    let big = vec![b'v'; 60_000];
    let mut many = Maker::default();
    for i in 0..40 {
        many.pax(&[(&format!("SCHILY.xattr.user.{i}"), &big)]);
    }
    assert!(matches!(problem(&many.file("f", b"").end()), TarProblem::Extension(_)));
    // Names of attributes, beyond what Linux can list.
    let name = |i: u32, len: usize| format!("SCHILY.xattr.user.{i:0len$}");
    for (count, len) in [(300, 240), (1100, 5)] {
        let names: Vec<String> = (0..count).map(|i| name(i, len)).collect();
        let records: Vec<(&str, &[u8])> = names.iter().map(|n| (&n[..], &b""[..])).collect();
        assert!(matches!(problem(&Maker::default().pax(&records).file("f", b"").end()), TarProblem::Pax));
        layer(&Maker::default().pax(&records[..200]).file("f", b"").end()).expect("fewer are fine");
    }
}

#[test]
fn links_cannot_make_paths_cost_more_than_their_length() {
    // Each path is short and leads through 40 links of 800 components each.
    let mut m = Maker::default();
    m.dir("d");
    for i in 0..40 {
        let target = format!("{}l{}", "d/../".repeat(780), i + 1);
        m.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{i}"), "x");
    }
    m.dir("l40");
    let limits = TarLimits { entries: 1000, ..TarLimits::default() };
    let built = Index::build(&m.end()[..], limits);
    built.expect("the links themselves cost nothing");
    for i in 0..100 {
        m.file(&format!("l5/f{i}"), b"");
    }
    let error = Index::build(&m.end()[..], limits).expect_err("refused");
    assert!(matches!(error.problem, TarProblem::LinkLoop), "{:?}", error.problem);
    // The same across two layers, where the upper one only implies the links.
    let mut low = Maker::default();
    low.dir("d");
    for i in 0..38 {
        let target = format!("{}l{}", "d/../".repeat(780), i + 1);
        low.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{i}"), "x");
    }
    low.dir("l38").file("l38/f", b"");
    let mut high = Maker::default();
    for i in 0..1000 {
        high.hard(&format!("h{i}"), "l0/f");
    }
    let error = Overlay::new(vec![low.layer(), high.layer()], Limits::default()).expect_err("refused");
    assert!(matches!(error, OverlayError::Links { layer: 1 }), "{error}");
}

#[test]
fn a_layer_cut_at_any_block_is_refused_or_ends_there() {
    let whole = composite();
    let full = layer(&whole.0).expect("an archive may end without its two zero blocks");
    let (mut accepted, mut refused) = (0, 0);
    for cut in (0..whole.0.len()).step_by(512).flat_map(|at| [at.saturating_sub(1), at, at + 1]) {
        match layer(&whole.0[..cut]) {
            Ok(part) => {
                assert_eq!(cut % 512, 0);
                assert!(part.index().names() <= full.index().names());
                // A link may have lost its target only by being cut off itself.
                if let Ok(fs) = Overlay::new(vec![part], Limits::default()) {
                    walk(&Paths(&fs), "", 0);
                }
                accepted += 1;
            }
            Err(e) => {
                assert!(matches!(e.problem, TarProblem::Truncated), "{cut}: {e}: {:?}", e.problem);
                refused += 1;
            }
        }
    }
    assert!(accepted > 10 && refused > 50, "{accepted} {refused}");
}

/// Builds, joins and touches everything of a damaged tar; how large the index may get is bounded by the tar.
fn survive(tar: &[u8]) {
    let limits = TarLimits { entries: 1000, metadata: 1 << 20, ..TarLimits::default() };
    let Ok(index) = Index::build(tar, limits) else { return };
    assert!(index.as_bytes().len() < (1 << 21), "{}", index.as_bytes().len());
    let mut file = tempfile::tempfile().expect("file");
    io::Write::write_all(&mut file, tar).expect("write");
    let layer = Layer::new(Arc::new(index), file).expect("layer");
    if let Ok(fs) = Overlay::new(vec![composite().layer(), layer], Limits::default()) {
        walk(&Paths(&fs), "", 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6), seal in any::<bool>()) {
        let mut tar = composite().end();
        for (at, bit) in flips {
            tar[at.index(composite().0.len())] ^= 1 << bit;
        }
        if seal {
            // With right checksums the damage gets further in.
            for block in 0..tar.len() / 512 {
                let header = &mut tar[block * 512..][..512];
                if &header[257..262] == b"ustar" {
                    header[148..156].fill(b' ');
                    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        survive(&tar);
    }

    #[test]
    fn fields_of_random_text_never_panic(field in 0usize..6, text in prop::collection::vec(any::<u8>(), 0..13), kind in any::<u8>()) {
        let mut m = composite();
        m.header(b"last", kind, 3, b"d/f");
        let at = m.0.len() - 512 + [100, 108, 116, 124, 136, 329][field];
        let len = text.len().min(8);
        m.0[at..at + len].copy_from_slice(&text[..len]);
        m.seal(0).body(b"abc");
        survive(&m.end());
    }

    #[test]
    fn random_pax_records_never_panic(key in "(path|linkpath|size|uid|mtime|GNU\\.sparse\\.(map|size|major|offset|numbytes|name)|SCHILY\\.xattr\\.user\\.x)", value in "[-0-9a-z./,\n]{0,40}", kind in "[012357S]") {
        let mut m = composite();
        m.pax(&[(&key, value.as_bytes())]).header(b"last", kind.as_bytes()[0], 0, b"d/f");
        survive(&m.end());
    }
}

#[test]
fn an_index_damaged_in_any_byte_is_refused_or_harmless() {
    let layer = composite().layer();
    let good = layer.index().as_bytes().to_vec();
    let mut accepted = 0;
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, good[at] ^ 1, good[at].wrapping_add(1)] {
            let mut bad = good.clone();
            if bad[at] == value {
                continue;
            }
            bad[at] = value;
            assert!(Index::from_bytes(bad.clone()).is_err(), "byte {at}: the damage is seen");
            // A forger would set the checksum right.
            let crc = crc32fast::hash(&bad[16..]);
            bad[12..16].copy_from_slice(&crc.to_le_bytes());
            let Ok(index) = Index::load(&bad[..]) else { continue };
            let Ok(forged) = Layer::new(Arc::new(index), layer.tar.try_clone().expect("clone")) else {
                continue;
            };
            accepted += 1;
            if let Ok(fs) = Overlay::new(vec![layer.clone(), forged], Limits::default()) {
                walk(&Paths(&fs), "", 0);
            }
        }
    }
    assert!(accepted > 1000, "{accepted}");
}
