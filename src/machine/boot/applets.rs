//! The names a busybox answers to.
//!
//! They are read from the table in the binary rather than asked of it with `--list`: this works on
//! hosts that cannot run it, and nothing downloaded is run on the host. The table is all names in
//! ascending order, each ended by a NUL. Should a build have it in another form, a list of the
//! commonest applets serves.

/// Fewer names than this are no table.
const FEWEST: usize = 24;
const LONGEST: usize = 32;
/// These are in every build, so they tell the table from other sorted lists.
const MARKS: [&str; 3] = ["cat", "ls", "sh"];

const COMMON: [&str; 96] = [
    "[",
    "[[",
    "ash",
    "awk",
    "base64",
    "basename",
    "bunzip2",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "chroot",
    "clear",
    "cmp",
    "cp",
    "cpio",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "egrep",
    "env",
    "expr",
    "false",
    "fgrep",
    "find",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "id",
    "ifconfig",
    "ip",
    "kill",
    "killall",
    "less",
    "ln",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "more",
    "mount",
    "mv",
    "nc",
    "nproc",
    "od",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "route",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "time",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "uniq",
    "uptime",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
];

/// The applets of the busybox program `binary`, ascending.
pub(super) fn applets(binary: &[u8]) -> Vec<&str> {
    let mut at = 0;
    while at < binary.len() {
        let (names, next) = sorted_run(binary, at);
        if names.len() >= FEWEST && MARKS.iter().all(|mark| names.binary_search(mark).is_ok()) {
            return names;
        }
        at = next;
    }
    COMMON.to_vec()
}

/// The names from `at` on for as long as each is greater than the one before it, and where to look
/// next.
fn sorted_run(binary: &[u8], at: usize) -> (Vec<&str>, usize) {
    let mut names: Vec<&str> = Vec::new();
    let mut at = at;
    while let Some(rest) = binary.get(at..) {
        let Some(len) = rest.iter().take(LONGEST + 1).position(|&b| !is_name_byte(b)) else {
            if names.is_empty() {
                at += LONGEST;
            }
            break;
        };
        if len == 0 || rest[len] != 0 {
            if names.is_empty() {
                at += len + 1;
            }
            break;
        }
        // Checked to be ASCII above.
        let name = std::str::from_utf8(&rest[..len]).unwrap_or_default();
        if names.last().is_some_and(|&last| last >= name) {
            break;
        }
        names.push(name);
        at += len + 1;
    }
    (names, at)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"[-_.".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_found_between_other_strings() {
        let names = applets(b"");
        assert!(names.contains(&"sh") && names.is_sorted());
        // Another sorted list, a long word, then the table with one name more.
        let mut program = b"\x7fELF zebra\0apple\0banana\0".to_vec();
        program.extend_from_slice(&[b'x'; 100]);
        program.extend_from_slice(b"\0\x01");
        for name in names.iter().chain(&["zcip"]) {
            program.extend_from_slice(name.as_bytes());
            program.push(0);
        }
        program.extend_from_slice(b"\x02\x03 Usage: \0");
        let found = applets(&program);
        assert_eq!(found.last(), Some(&"zcip"));
        assert_eq!(found[..found.len() - 1], names);
    }

    #[test]
    fn applets_are_what_busybox_itself_lists() {
        let path = std::path::Path::new("/bin/busybox");
        let Ok(binary) = std::fs::read(path) else {
            eprintln!("skipped: no {}", path.display());
            return;
        };
        let list = std::process::Command::new(path).arg("--list").output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert_eq!(applets(&binary), list.lines().collect::<Vec<_>>());
    }
}
