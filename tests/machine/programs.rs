//! Real programs on real files: the same static busybox runs a script on this host's processor and on
//! the machine's, and what it writes must not differ in a byte.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio as HostStdio;
use std::sync::OnceLock;

use cc::Instance;
use cc::process::Stdio;

use crate::support::{busybox, sh, shared};

/// What all scripts start with. They find `text` (sources of this crate), `binary` (the busybox
/// itself), `words` (one word a line) and `small` (a few lines) in their working directory.
const PRELUDE: &str = "set -u; umask 022; ";

/// The files that the scripts work on.
struct Files {
    text: Vec<u8>,
    words: Vec<u8>,
    small: Vec<u8>,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut text = Vec::new();
        for name in [
            "src/agent/protocol.rs",
            "src/chipset/lapic/mod.rs",
            "src/hypervisor/soft/mmu.rs",
            "src/virtio/queue.rs",
            "guest/server.rs",
            "tests/common/process.rs",
        ] {
            text.extend(std::fs::read(root.join(name)).expect(name));
        }
        let mut words = Vec::new();
        for word in text.split(|b| !b.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
            words.extend_from_slice(word);
            words.push(b'\n');
        }
        let small = text.split_inclusive(|b| *b == b'\n').take(40).flatten().copied().collect();
        Files { text, words, small }
    })
}

/// The host's side: a directory with the files, and one with a link for each applet.
struct Host {
    dir: tempfile::TempDir,
    bin: PathBuf,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let program = bin.join("busybox");
        std::fs::write(&program, busybox()).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let list = std::process::Command::new(&program).arg("--list").output().expect("busybox runs here");
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|a| *a != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        Host { dir, bin }
    })
}

fn push(instance: &Instance, path: &str, bytes: &[u8]) {
    let mut cat = instance.command("sh");
    cat.args(["-c", "cat >\"$0\"", path]).stdin(Stdio::piped());
    let mut cat = cat.spawn().unwrap();
    cat.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    assert!(cat.wait().unwrap().success());
}

/// Where the files are in the guest.
const GUEST_FILES: &str = "/tmp/programs";

fn guest() -> &'static Instance {
    static READY: OnceLock<()> = OnceLock::new();
    let instance = shared();
    READY.get_or_init(|| {
        sh(instance, &format!("mkdir {GUEST_FILES}"));
        for (name, bytes) in [
            ("text", &files().text[..]),
            ("words", &files().words),
            ("small", &files().small),
            ("binary", busybox()),
        ] {
            push(instance, &format!("{GUEST_FILES}/{name}"), bytes);
        }
    });
    instance
}

/// Runs `script` on both and compares status, output and errors.
fn same(name: &str, script: &str) {
    const ENV: [(&str, &str); 4] =
        [("HOME", "/nonexistent"), ("LC_ALL", "C"), ("TZ", "UTC"), ("TERM", "dumb")];
    let script = format!("{PRELUDE}{script}");

    let host = host();
    let work = host.dir.path().join(name);
    std::fs::create_dir(&work).unwrap();
    for (file, bytes) in [
        ("text", &files().text[..]),
        ("words", &files().words),
        ("small", &files().small),
        ("binary", busybox()),
    ] {
        std::fs::write(work.join(file), bytes).unwrap();
    }
    let mut shell = std::process::Command::new(host.bin.join("sh"));
    // The shell names itself in its messages.
    shell.arg0("sh").args(["-c", &script]).current_dir(&work).stdin(HostStdio::null());
    let expected = shell.env_clear().envs(ENV).env("PATH", &host.bin).output().unwrap();

    let instance = guest();
    sh(
        instance,
        &format!("mkdir {GUEST_FILES}/{name}.d; cd {GUEST_FILES}; cp text words small binary {name}.d"),
    );
    let mut shell = instance.command("sh");
    shell.args(["-c", &script]).current_dir(format!("{GUEST_FILES}/{name}.d"));
    let out = shell.env_clear().envs(ENV).env("PATH", "/bin").output().unwrap();
    sh(instance, &format!("rm -r {GUEST_FILES}/{name}.d"));

    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    assert_eq!(text(&out.stderr), text(&expected.stderr), "{name}: errors");
    assert_eq!(out.status.code(), expected.status.code(), "{name}: {}", text(&out.stdout));
    if out.stdout != expected.stdout {
        let at = out.stdout.iter().zip(&expected.stdout).position(|(a, b)| a != b);
        let at = at.unwrap_or(out.stdout.len().min(expected.stdout.len()));
        let from = at.saturating_sub(40);
        panic!(
            "{name} differs at byte {at} of {} and {}:\n{}\n-- not --\n{}",
            out.stdout.len(),
            expected.stdout.len(),
            text(&out.stdout[from..]),
            text(&expected.stdout[from..])
        );
    }
    assert!(!expected.stdout.is_empty(), "{name} says nothing");
}

macro_rules! programs {
    ($($name:ident: $script:expr;)*) => {
        $(#[test]
        fn $name() {
            same(stringify!($name), $script);
        })*
    };
}

programs! {
    digests: "for d in md5sum sha1sum sha256sum sha512sum sha3sum; do $d text binary small; done";
    gzip_packs_alike: "gzip -c text | tee a | sha256sum; gunzip -c a | cmp - text && echo same; \
        gzip -9 -c binary >b; sha256sum b; zcat b | cmp - binary && echo same; gunzip -t b && echo sound; \
        head -c 1000 b >c; gunzip -c c | sha256sum";
    bzip2_packs_alike: "bzip2 -c text | tee a | sha256sum; bunzip2 -c a | cmp - text && echo same; \
        head -c 300000 binary | bzip2 -1 | tee b | sha256sum; bzcat b | md5sum";
    sort_and_uniq: "sort words | sha256sum; sort -u words | wc -l; sort -rn words | head -20; \
        sort words | uniq -c | sort -k1,1nr -k2 | head -30; sort -t: -k2 -f small | md5sum; shuf -e 1 | wc -l";
    awk_counts_and_computes: "awk '{ n[$1]++ } END { for (w in n) print n[w], w }' words | sort | tail -40; \
        awk 'BEGIN { for (i = 1; i < 60; i++) printf \"%d %.15g %.10e %s\\n\", i, sin(i) * exp(i / 7), log(i) / 3, \
            substr(\"abcdefghijklmnopqrstuvwxyz\", i % 20, 5) }'; \
        awk -F'[(,)]' '/fn /{ print NR, NF, toupper($1), length($2) }' text | tail -100; \
        awk 'BEGIN { x = 1; while (i++ < 2000) x = (x * 16807) % 2147483647; print x, x / 3, int(x / 7), sqrt(x), atan2(x, 3), x ^ 0.3 }'";
    sed_edits: "sed -n '/fn /s/fn \\([a-z_]*\\).*/<\\1>/p' text | head -200; sed -e '1,7d' -e 's/[aeiou]/\\U&/g' small | md5sum; \
        sed -i 's/let/LET/g; $!N; P; D' small; cat small; sed -E 's/([a-z]+) ([a-z]+)/\\2 \\1/g' text | md5sum; \
        sed '/^use/{h;d};${G;y/abc/xyz/}' small";
    ed_edits: "printf '%s\\n' '1,5p' '/use/d' 'a' 'new line' '.' '1,$s/a/A/g' '$=' 'w out' 'q' | ed small; cat out";
    vi_edits: "cp small old; vi -c '%s/e/E/g' -c '1,3d' -c '$s/^/last /' -c '5,9s/[a-f]/<&>/' -c wq small </dev/null | wc -c; \
        cat small; cmp -s small old || echo edited";
    calculators: "echo '2 100 ^ p 3 / p 12345678901234567890 987654321 * p 16 o 255 p' | dc; \
        echo 'scale=50; 4*a(1); e(1); s(1); l(2); sqrt(2); 2^500; obase=16; 123456789' | bc -l; \
        echo 'define f(n) { if (n < 2) return n; return f(n-1) + f(n-2); } f(16)' | bc; \
        i=0; x=1; while [ $i -lt 300 ]; do x=$(( (x * 6364136223846793005 + 1442695040888963407) ^ (x >> 7) )); i=$((i+1)); done; echo $x; expr 17 '*' 4 / 3";
    archives: "mkdir t; cp text small t; mkdir t/d; cp binary t/d/; ln -s ../small t/d/link; chmod 640 t/small; \
        tar cf a.tar t; tar tf a.tar | sort; mkdir u; tar xf a.tar -C u; find u | sort; cat u/t/d/binary | md5sum; ls -l u/t/small | cut -c1-10; \
        tar czf a.tgz t && tar xzOf a.tgz t/text | md5sum; \
        find t | sort | cpio -o -H newc 2>/dev/null >a.cpio; mkdir v; (cd v; cpio -id <../a.cpio 2>/dev/null); find v -type f | sort | xargs md5sum";
    searches: "grep -c '^ *//' text; grep -n 'unsafe\\|SAFETY' text | head -50; grep -oE '[a-z]+_[a-z]+\\(' text | sort | uniq -c | sort -rn | head; \
        grep -c ELF binary; strings binary | tail -100 | md5sum; find . -name '*al*' -size -20k | sort; grep -vi 'e' small; fgrep -x '}' text | wc -l";
    text_tools: "wc text words binary; tr a-z A-Z <small; tr -cd '0-9\\n' <text | tr -s '\\n' | md5sum; cut -c3-20 small; cut -d' ' -f2,4- text | md5sum; \
        fold -w 30 small | rev | nl | expand -t 4 | tail -30; paste -d: small small | head -3; tac small | head -3; \
        head -c 70 binary | od -A x -t x1; od -t d4 binary | md5sum; hexdump -C small | tail -5; xxd small | head -4; \
        seq -w 1 7 30; factor 1234567890123 97 1000000007";
    diff_and_patch: "sed 's/self/this/; 20,25d' text >new; diff -u text new | tail -n +3 >p; wc p; tail -n 40 p; cp text old; patch old <p; cmp old new && echo same; cmp text new; diff -q small small; echo $?";
    encodings: "base64 binary | md5sum; base64 small | base64 -d | cmp - small && echo same; uuencode -m x <small | tail -3; \
        xzcat </dev/null; head -c 5000 binary | uuencode -m x | md5sum; printf '%05d|%-8s|%x|%o|%c|%5.2f|%e\\n' 42 left 255 8 char 3.14159 12345.678; \
        date -u -d @1234567890 '+%Y-%m-%d %H:%M:%S %j %u %a'; cal 2 2024";
    the_shell_itself: "f() { local x=$1; [ $x -le 0 ] && return 0; echo -n $x,; f $((x-1)); }; f 40; echo; \
        for a in *; do case $a in t*) echo T$a;; b*|s*) echo ${a%%l*} ${a#*i} ${#a};; *) echo other;; esac; done; \
        (trap 'echo bye' EXIT; exit 3); echo $?; set -- a 'b c' d; for x in \"$@\"; do echo \"<$x>\"; done; cat <<E | while read l; do echo \"[$l]\"; done\none\ntwo $((3*7))\nE\n\
        echo $(echo nested $(echo deeper)) `echo old`; true | false | true; echo $?; i=0; while [ $i -lt 100 ]; do i=$((i+1)); /bin/true 2>/dev/null || true; done; echo $i; nosuchcommand; echo $?";
}
