//! Copies out of a guest that lies.

use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::copy_out;
use crate::agent::protocol::files::{Request, Stat, answer_header};
use crate::agent::testing::files_of;
use crate::fs::guest::Guest;

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o106_755;

/// A guest whose only directory has these entries, whatever its path: names and kinds; files say `payload`.
fn guest(entries: Vec<(&'static [u8], u8)>, payload: &'static [u8]) -> Arc<Guest> {
    let files = files_of(move |_, mut socket| {
        let mut bytes = Vec::new();
        loop {
            while let Some((id, request, len)) = Request::decode(&bytes).unwrap() {
                let answer = say(&request, &entries, payload);
                let _ = socket.write_all(&answer_header(answer.len(), id, 0));
                let _ = socket.write_all(&answer);
                bytes.drain(..len);
            }
            if !read_more(&mut socket, &mut bytes) {
                return;
            }
        }
    });
    Arc::new(Guest::new(files, None::<OsString>))
}

fn read_more(socket: &mut UnixStream, bytes: &mut Vec<u8>) -> bool {
    let mut more = [0; 4096];
    match socket.read(&mut more) {
        Ok(n @ 1..) => {
            bytes.extend_from_slice(&more[..n]);
            true
        }
        _ => false,
    }
}

fn say(request: &Request<'_>, entries: &[(&[u8], u8)], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match request {
        Request::Stat(_) => Stat { mode: DIR, ..Stat::default() }.encode(&mut out),
        Request::OpenDir(path) if path.to_bytes().iter().filter(|b| **b == b'/').count() < 3 => {
            out.extend((-1i32).to_le_bytes());
            for (name, kind) in entries {
                let len = (19 + name.len() + 1).next_multiple_of(8);
                let mut entry = vec![0; len];
                entry[16..18].copy_from_slice(&(len as u16).to_le_bytes());
                entry[18] = *kind;
                entry[19..19 + name.len()].copy_from_slice(name);
                out.extend(entry);
            }
        }
        Request::OpenDir(_) => out.extend((-1i32).to_le_bytes()),
        Request::ReadFile(..) => {
            Stat { mode: FILE, size: payload.len() as u64, blocks: 99, ..Stat::default() }.encode(&mut out);
            out.extend((-1i32).to_le_bytes());
            out.extend_from_slice(payload);
        }
        Request::ReadLink(_) => out.extend_from_slice(payload),
        _ => {}
    }
    out
}

const DT_DIR: u8 = 4;
const DT_REG: u8 = 8;
const DT_LNK: u8 = 10;

#[test]
fn nothing_is_written_outside() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("f"), "untouched").unwrap();
    let names: [&[u8]; 4] = [b"../outside/f", b"/tmp/cc-never", b"a/b", b""];
    for name in names {
        for kind in [DT_DIR, DT_REG, DT_LNK] {
            let into = scratch.path().join("into");
            let error = copy_out(&guest(vec![(name, kind)], b"hostile"), "/".as_ref(), &into).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::InvalidData), "{error}");
        }
    }
    // A link that leads out, and then what looks like something below it, by the same name and by another kind.
    for entries in [
        vec![(&b"x"[..], DT_LNK), (b"x", DT_DIR)],
        vec![(b"x", DT_LNK), (b"x", DT_REG)],
        vec![(b"x", DT_DIR), (b"x", DT_LNK), (b"f", DT_REG)],
    ] {
        let into = scratch.path().join("into");
        let leads: &'static str = Box::leak(outside.to_str().unwrap().to_owned().into_boxed_str());
        let _ = copy_out(&guest(entries, leads.as_bytes()), "/".as_ref(), &into);
        let names: Vec<_> = std::fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
        assert_eq!(std::fs::read(outside.join("f")).unwrap(), b"untouched");
    }
    assert!(!std::path::Path::new("/tmp/cc-never").exists());
}

#[test]
fn bits_of_a_hostile_mode_are_dropped() {
    use std::os::unix::fs::PermissionsExt;
    let into = tempfile::tempdir().unwrap();
    let (guest, target) = (guest(vec![(b"f", DT_REG)], b"x"), into.path().join("t"));
    assert_eq!(copy_out(&guest, "/".as_ref(), &target).unwrap(), 1);
    assert_eq!(std::fs::metadata(target.join("f")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_tree_without_end_is_given_up() {
    let endless = files_of(|_, mut socket| {
        let mut bytes = Vec::new();
        loop {
            while let Some((id, request, len)) = Request::decode(&bytes).unwrap() {
                let mut answer = Vec::new();
                match request {
                    Request::OpenDir(_) => {
                        answer.extend((-1i32).to_le_bytes());
                        let mut entry = vec![0; 24];
                        (entry[16], entry[18], entry[19]) = (24, DT_DIR, b'd');
                        answer.extend(entry);
                    }
                    _ => Stat { mode: DIR, ..Stat::default() }.encode(&mut answer),
                }
                let _ = socket.write_all(&answer_header(answer.len(), id, 0));
                let _ = socket.write_all(&answer);
                bytes.drain(..len);
            }
            if !read_more(&mut socket, &mut bytes) {
                return;
            }
        }
    });
    let into = tempfile::tempdir().unwrap();
    let guest = Arc::new(Guest::new(endless, None));
    let error = copy_out(&guest, "/".as_ref(), into.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

/// A file with a hole, of which each piece that is asked for comes longer than asked.
#[test]
fn more_than_was_asked_for_is_refused() {
    let files = files_of(|_, mut socket| {
        let mut bytes = Vec::new();
        loop {
            while let Some((id, request, len)) = Request::decode(&bytes).unwrap() {
                let mut answer = Vec::new();
                match request {
                    Request::Stat(_) => Stat { mode: FILE, ..Stat::default() }.encode(&mut answer),
                    Request::ReadFile(..) => {
                        Stat { mode: FILE, size: 1 << 20, ..Stat::default() }.encode(&mut answer);
                        answer.extend(7i32.to_le_bytes());
                    }
                    // Data begins at once and ends after four bytes.
                    Request::Seek(_, _, whence) => answer.extend((u64::from(whence == 4) * 4).to_le_bytes()),
                    Request::Read(_, _, asked) => answer.resize(asked as usize + 96, b'x'),
                    _ => {}
                }
                let _ = socket.write_all(&answer_header(answer.len(), id, 0));
                let _ = socket.write_all(&answer);
                bytes.drain(..len);
            }
            if !read_more(&mut socket, &mut bytes) {
                return;
            }
        }
    });
    let into = tempfile::tempdir().unwrap();
    let guest = Arc::new(Guest::new(files, None));
    let error = copy_out(&guest, "/f".as_ref(), &into.path().join("f")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
}
