//! Files in the guest do what files of Linux do: on the root, which is an overlay of ours, and with Debian's programs
//! also on a directory of the host and on an empty mount.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;

use cc::process::Stdio;
use cc::vfs::Limits;
use cc::{Instance, Mount};

use crate::support::{sh, shared, small, source};
use crate::world::{debian_machine, host_mount, python};

/// Runs a script in a new directory of the shared machine's root, and compares what it says.
fn says(name: &str, script: &str, expected: &str) {
    let out = sh(shared(), &format!("mkdir -p /files/{name}; cd /files/{name}; {{ {script}; }} 2>&1; true"));
    assert_eq!(out, expected.trim(), "{script}");
}

#[test]
fn names_and_links() {
    says("names", "echo a >a; echo b >>a; cat a; mv a b; ls; echo c >c; mv c b; cat b; ls", "a\nb\nb\nc\nb");
    says(
        "links",
        "echo b >b; ln b d; stat -c %h b d; rm b; stat -c %h d; cat d; ln -s d e; cat e; readlink e; \
         ln -s nowhere f; cat f; mv d e; test -L e || cat e; ln e e; ls; ln -s loop loop; cat loop",
        "2\n2\n1\nb\nb\nd\ncat: can't open 'f': No such file or directory\nb\nln: e: File exists\ne\nf\n\
         cat: can't open 'loop': Too many levels of symbolic links",
    );
    says(
        "directories",
        "mkdir -p a/b c; touch a/b/f; rmdir a; mv c a; ls a; mkdir c; mv -T c a/b; mv -T a/b c && ls c; \
         mv a a/c; rmdir c; touch x; mkdir x; mv -T c x; ls",
        "rmdir: 'a': Directory not empty\nb\nc\nmv: can't rename 'c': Directory not empty\nf\n\
         mv: can't rename 'a': Invalid argument\nrmdir: 'c': Directory not empty\n\
         mkdir: can't create directory 'x': File exists\nmv: can't rename 'c': Not a directory\na\nc\nx",
    );
}

#[test]
fn owners_and_modes() {
    says(
        "owners",
        "mkdir g; chown 7:50 g; chmod 2775 g; touch g/f; mkdir g/d; stat -c '%u:%g %a' g g/f g/d; \
         touch s; chmod 6755 s; stat -c %a s; chown 5 s; stat -c '%u %a' s; umask 077; touch private; \
         stat -c %a private; chmod 1777 g; stat -c %a g; ln -s s l; chown -h 9 l; stat -c %u l s",
        "7:50 2775\n0:50 644\n0:50 2755\n6755\n5 755\n600\n1777\n9\n5",
    );
    // What another user may, the guest's kernel decides by what we tell it.
    sh(
        shared(),
        "mkdir -p /files/users; cd /files/users; chmod 777 .; echo s >s; chmod 600 s; echo x >x; chmod 6777 x",
    );
    let mut user = shared().command("sh");
    let script =
        "cat s; echo y >>x; stat -c %a x; echo mine >m; stat -c %u:%g m; chown 0 m; chmod 777 x; rm -f s; ls";
    let out = user
        .args(["-c", &format!("{{ {script}; }} 2>&1")])
        .current_dir("/files/users")
        .user("1000:1001")
        .output();
    assert_eq!(
        String::from_utf8_lossy(&out.unwrap().stdout),
        "cat: can't open 's': Permission denied\n777\n1000:1001\nchown: m: Operation not permitted\n\
         chmod: x: Operation not permitted\nm\nx\n",
        "R3.12: writing takes the set-id bits away"
    );
}

#[test]
fn r3_3_holes_and_lengths() {
    says(
        "holes",
        "truncate -s 1G t; stat -c '%s %b' t; echo end >>t; stat -c '%s %b' t; tail -c 4 t; \
         dd if=/dev/zero of=d bs=4096 count=1 seek=2560 2>/dev/null; stat -c '%s %b' d; head -c 10485760 d | tr -d '\\0' | wc -c; \
         fallocate -l 1048576 f; stat -c '%s %b' f; printf 1234567890 >g; truncate -s 4 g; truncate -s 8 g; od -c g | head -1",
        "1073741824 0\n1073741828 8\nend\n10489856 8\n0\n1048576 2048\n\
         0000000   1   2   3   4  \\0  \\0  \\0  \\0",
    );
}

#[test]
fn r3_1_names_of_every_kind() {
    let long = "n".repeat(255);
    says(
        "long",
        &format!("touch {long} && ls | wc -c; touch {long}x; mkdir {long}x; ls | wc -l; mv {long} short; ls"),
        &format!(
            "256\ntouch: {long}x: File name too long\nmkdir: can't create directory '{long}x': File name too long\n1\nshort"
        ),
    );
    says(
        "odd",
        "touch -- \"$(printf 'a\\nb')\" \"$(printf '\\377\\1')\" '-rf' ' ' '*' '\\'; \
         find . -mindepth 1 -print0 | sort -z | od -An -v -tx1 | tr -d ' \\n'",
        // In the order of bytes.
        "2e2f20002e2f2a002e2f2d7266002e2f5c002e2f610a62002e2fff0100",
    );
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    says(
        "unlinked",
        "echo old >f; exec 3<f 4>>f; rm f; echo more >&4; cat <&3; ls -A; echo new >f; cat f",
        "old\nmore\nnew",
    );
}

/// A small root is full, tells so cleanly, and is of use again; an empty mount has bounds of its own.
#[test]
fn r3_11_a_full_disk_is_enospc_and_recovers() {
    let limits = Limits { bytes: 4 << 20, inodes: 300, ..Limits::default() };
    let builder = Instance::builder(source()).memory_mb(160).limits(limits);
    let machine = builder.mount(Mount::empty("other")).start().unwrap();
    let fill = "dd if=/dev/zero of=/full bs=64k count=1000 2>&1 | grep -o 'No space left on device'";
    assert_eq!(sh(&machine, fill), "No space left on device");
    let size: u64 = sh(&machine, "sync; stat -c %b /full").parse().unwrap();
    assert!((6000..=8192).contains(&size), "{size} blocks of 512 bytes");
    assert_eq!(
        sh(
            &machine,
            "echo x 2>/dev/null >/more && cat /more || echo full; df / | tail -1 | awk '{ print $4 }'"
        ),
        "full\n0"
    );
    // Elsewhere there is room, and what was there can be read.
    assert_eq!(
        sh(&machine, "echo y >/mnt/other/y; cat /mnt/other/y; echo t >/tmp/t; cat /tmp/t; ls -d /bin"),
        "y\nt\n/bin"
    );
    for _ in 0..3 {
        assert_eq!(sh(&machine, "rm -f /full /more; echo again >/again; cat /again; rm /again"), "again");
        assert_eq!(sh(&machine, fill), "No space left on device");
    }
    sh(&machine, "rm /full");

    let many = "mkdir /d; cd /d; i=0; while { true >$i; } 2>/dev/null; do i=$((i + 1)); test $i -gt 400 && break; done; echo $i";
    let made: u32 = sh(&machine, many).parse().unwrap();
    assert!((250..=300).contains(&made), "{made} files");
    assert_eq!(sh(&machine, "rm -r /d; mkdir /d && touch /d/f && ls /d"), "f");
}

/// Where the tests with Debian's programs work: the root, a directory of the host, memory.
const PLACES: [&str; 3] = ["/work", "/mnt/host", "/mnt/empty"];

/// Runs `program` in a new directory of each place, with `place` set.
fn everywhere(name: &str, program: &str, expected: &str) {
    let Some(machine) = debian_machine() else { return };
    for place in PLACES {
        let dir = format!("{place}/{name}");
        let start =
            format!("import os, sys, errno; os.makedirs({dir:?}); os.chdir({dir:?}); place = {place:?}\n");
        assert_eq!(python(machine, &(start + program)), expected, "in {place}");
    }
}

#[test]
fn appends_of_two_processes_lose_nothing() {
    everywhere(
        "append",
        r"
for who in b'ab':
    if os.fork() == 0:
        f = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for n in range(200):
            os.write(f, b'%c%04d%s\n' % (who, n, b'.' * 94))
        os._exit(0)
assert [os.wait()[1] for _ in 'ab'] == [0, 0]
lines = open('log', 'rb').read().splitlines()
print(len(lines), sorted(lines) == sorted(b'%c%04d%s' % (who, n, b'.' * 94) for who in b'ab' for n in range(200)))
",
        "400 True",
    );
}

#[test]
fn record_locks_wait_and_are_granted() {
    everywhere(
        "locks",
        r"
import fcntl
f = open('f', 'w+b')
f.write(b'x' * 100); f.flush()
for lock, how in [(lambda file, op: fcntl.lockf(file, op, 10, 20), 'record'), (fcntl.flock, 'whole')]:
    said, say = os.pipe()
    lock(f, fcntl.LOCK_EX)
    child = os.fork()
    if child == 0:
        mine = open('f', 'r+b')
        try:
            lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(say, b'not refused')
        except BlockingIOError:
            os.write(say, b'refused')
        lock(mine, fcntl.LOCK_EX)
        # Only now, because the other has given it back.
        os.write(say, b'granted ' + os.pread(mine.fileno(), 4, 0))
        os._exit(0)
    print(how, os.read(said, 100).decode())
    f.seek(0); f.write(b'mine'); f.flush()
    lock(f, fcntl.LOCK_UN)
    print(os.read(said, 100).decode(), os.waitpid(child, 0)[1])
# Other bytes are nobody's business.
fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
if os.fork() == 0:
    fcntl.lockf(open('f', 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
",
        "record refused\ngranted mine 0\nwhole refused\ngranted mine 0\n7",
    );
}

#[test]
fn directories_are_deeper_than_a_path_can_say() {
    everywhere(
        "deep",
        r"
import subprocess
def names(f): return sorted(os.listdir(f))
for n in range(200):
    os.mkdir('directory of some length'); os.chdir('directory of some length')
open('f', 'w').write('bottom')
print(open('f').read(), names('.'))
try:
    open('../' * 2000 + 'f')
except OSError as e:
    print(errno.errorcode[e.errno])
os.chdir('../' * 200)
print(names('.'), subprocess.run(['find', '.', '-name', 'f'], capture_output=True, text=True).stdout.count('/'))
print(subprocess.run(['rm', '-r', 'directory of some length']).returncode, names('.'))
",
        "bottom ['f']\nENAMETOOLONG\n['directory of some length'] 201\n0 []",
    );
}

#[test]
fn extended_attributes_and_numbers_of_the_file_system() {
    everywhere(
        "attributes",
        r"
open('f', 'w').close()
os.setxattr('f', 'user.a', b'1\0\xff'); os.setxattr('f', 'user.b', b'')
print(sorted(os.listxattr('f')), os.getxattr('f', 'user.a'), os.getxattr('f', 'user.b'))
def fails(call):
    try:
        call()
    except OSError as e:
        return errno.errorcode[e.errno]
print(fails(lambda: os.setxattr('f', 'user.a', b'', os.XATTR_CREATE)), fails(lambda: os.setxattr('f', 'user.c', b'', os.XATTR_REPLACE)))
os.removexattr('f', 'user.a')
print(os.listxattr('f'), fails(lambda: os.getxattr('f', 'user.a')), fails(lambda: os.removexattr('f', 'user.a')))
s = os.statvfs('.')
print(s.f_namemax, s.f_bsize >= 512, 0 < s.f_bavail <= s.f_blocks, 0 < s.f_ffree <= s.f_files)
os.utime('f', ns=(1_234_567_891_234_567_891, 987_654_321_987_654_321))
print(os.stat('f').st_mtime_ns, os.stat('f').st_atime_ns)
d = os.open('.', os.O_RDONLY); os.fsync(d); os.close(d)
",
        "['user.b', 'user.a'] b'1\\x00\\xff' b''\nEEXIST ENODATA\n['user.b'] ENODATA ENODATA\n255 True True True\n\
         987654321987654321 1234567891234567891"
            .replace("['user.b', 'user.a']", "['user.a', 'user.b']")
            .as_str(),
    );
}

#[test]
fn r3_3_holes_are_truthful_and_copied() {
    everywhere(
        "sparse",
        r"
import subprocess
f = os.open('s', os.O_RDWR | os.O_CREAT)
os.ftruncate(f, 16 << 20)
os.pwrite(f, b'a' * 4096, 2 << 20)
os.pwrite(f, b'b' * 8192, 8 << 20)
print(os.fstat(f).st_blocks)
def map(f):
    at, found = 0, []
    while True:
        try:
            data = os.lseek(f, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            return found
        at = os.lseek(f, data, os.SEEK_HOLE)
        found.append((data, at - data))
print(map(f))
subprocess.run(['cp', '--sparse=auto', 's', 'copy'], check=True)
print(os.stat('copy').st_size, os.stat('copy').st_blocks, subprocess.run(['cmp', 's', 'copy']).returncode)
os.posix_fallocate(f, 1 << 20, 1 << 20)
print(os.fstat(f).st_blocks, os.fstat(f).st_size)
g = os.open('part', os.O_RDWR | os.O_CREAT)
print(os.copy_file_range(f, g, 10000, (2 << 20) - 1000, 0), os.pread(g, 4, 998), os.fstat(g).st_size)
os.ftruncate(f, 0)
print(os.fstat(f).st_blocks)
",
        "24\n[(2097152, 4096), (8388608, 8192)]\n16777216 24 0\n2072 16777216\n10000 b'\\x00\\x00aa' 10000\n0",
    );
}

/// Two processes map a file; what one writes the other sees, and it is in the file afterwards.
#[test]
fn shared_mappings_are_shared() {
    let program = r#"
c = r'''
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int f = open("mapped", O_RDWR | O_CREAT, 0644), down[2], up[2];
    char c;
    if (ftruncate(f, 3 * 4096) || pipe(down) || pipe(up)) return 1;
    if (fork() == 0) {
        char *theirs = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open("mapped", O_RDWR), 0);
        if (theirs == MAP_FAILED || read(down[0], &c, 1) != 1) _exit(2);
        if (strcmp(theirs + 4090, "across a page")) _exit(3);
        strcpy(theirs + 8192, "answer");
        if (write(up[1], "x", 1) != 1) _exit(4);
        _exit(0);
    }
    char *ours = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
    if (ours == MAP_FAILED) { perror("mmap"); return 5; }
    strcpy(ours + 4090, "across a page");
    int status;
    if (write(down[1], "x", 1) != 1) return 6;
    close(up[1]);
    if (read(up[0], &c, 1) != 1) { wait(&status); printf("child %d\n", status); return 7; }
    printf("%s\n", ours + 8192);
    if (msync(ours, 3 * 4096, MS_SYNC)) { perror("msync"); return 8; }
    char read_back[14];
    if (pread(f, read_back, 14, 4090) != 14) return 9;
    printf("%s\n", read_back);
    // A write by the call is seen in the mapping.
    if (pwrite(f, "written", 8, 100) != 8) return 10;
    printf("%s\n", ours + 100);
    return munmap(ours, 3 * 4096) || close(f);
}
'''
import subprocess
if not os.path.exists('/tmp/mapped'):
    open('/tmp/mapped.c', 'w').write(c)
    subprocess.run(['gcc', '-o', '/tmp/mapped', '/tmp/mapped.c'], check=True)
print(subprocess.run(['/tmp/mapped'], capture_output=True, text=True))
print(open('mapped', 'rb').read().strip(b'\0').replace(b'\0', b' ').split())
"#;
    let said = "CompletedProcess(args=['/tmp/mapped'], returncode=0, stdout='answer\\nacross a page\\nwritten\\n', stderr='')\n\
        [b'written', b'across', b'a', b'page', b'answer']";
    everywhere("mapped", program, said);
    if debian_machine().is_some() {
        let on_host = std::fs::read(host_mount().join("mapped/mapped")).unwrap();
        assert_eq!(&on_host[4090..4103], b"across a page", "the host has it");
    }
}

/// R3.7 has 50 000 of them; the software CPU does as many in minutes.
#[test]
fn r3_7_open_and_unlink_again_and_again() {
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    everywhere(
        "cycles",
        r"
for n in range(1500):
    name = 'f%d' % (n % 7)
    f = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.unlink(name)
    if n % 100 == 0:
        os.write(f, b'x'); assert os.pread(f, 9, 0) == b'x' and os.fstat(f).st_nlink == 0
    os.close(f)
print(os.listdir('.'))
",
        "[]",
    );
    // Others run meanwhile; 1500 leaked ones would be seen.
    assert!(open_files() < before + 500, "{before} descriptors have become {}", open_files());
}

#[test]
fn many_files_are_listed_and_unlinked_while_listed() {
    let program = |count: u32| {
        format!(
            r"
for n in range({count}): os.close(os.open('name-%d' % n, os.O_CREAT))
names = os.listdir('.')
print(len(names), len(set(names)), all(e.inode() for e in os.scandir('.')))
seen = 0
for e in os.scandir('.'):
    os.unlink(e.name); seen += 1
print(seen, os.listdir('.'))
"
        )
    };
    let Some(machine) = debian_machine() else { return };
    for (place, count) in PLACES.into_iter().zip([10_000, 1000, 1000]) {
        let start = format!("import os; os.makedirs('{place}/many'); os.chdir('{place}/many')\n");
        let said = python(machine, &(start + &program(count)));
        assert_eq!(said, format!("{count} {count} True\n{count} []"), "in {place}");
    }
}

/// What is large goes to the root and to mounts by another way than to other file systems; the guest must not see the
/// difference.
#[test]
fn large_contents_reach_the_guest_whole_by_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let shared = tempfile::tempdir().unwrap();
    let instance = small()
        .mount(Mount::directory("shared", shared.path()).writable(true))
        .mount(Mount::empty("empty").at("/deep/in/empty"))
        .start()
        .unwrap();
    // By a link; by a directory of a mount that is mounted again, where nobody finds what the host offers; in the memory
    // of the guest below a mount.
    sh(&instance, "ln -s /mnt/shared /link; mkdir -p /mnt/shared/sub /again /mnt/shared/memory");
    sh(&instance, "mount --bind /mnt/shared/sub /again; mount -t tmpfs none /mnt/shared/memory");
    let near = ["/", "/mnt/shared/", "/deep/in/empty/", "/link/sub/"].map(|at| format!("{at}large"));
    let far = ["/tmp/", "/again/", "/mnt/shared/memory/"].map(|at| format!("{at}large"));
    let places: Vec<&str> = near.iter().chain(&far).map(String::as_str).collect();
    let source = dir.path().join("source");
    let costs = |work: &dyn Fn()| {
        let count = || {
            instance.pause().unwrap();
            let n = instance.instructions();
            instance.resume().unwrap();
            n
        };
        let before = count();
        work();
        count().zip(before).map(|(after, before)| after - before)
    };
    for len in [65_537, 4_000_003] {
        let bytes: Vec<u8> = (0..len as u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        std::fs::write(&source, &bytes).unwrap();
        // Somebody has the files open, has read them and has them mapped in the kernel's cache.
        let mut readers = Vec::new();
        for place in &near {
            sh(&instance, &format!("dd if=/dev/zero of={place} bs=1000000 count=5 2>&1"));
            let script =
                format!("exec 3<{place}; cat <&3 >/dev/null; echo; read x; wc -c <{place}; md5sum <{place}");
            let mut reader = instance.command("sh");
            reader.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut reader = reader.spawn().unwrap();
            reader.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            readers.push(reader);
        }
        for place in &places {
            let cost = costs(&|| assert_eq!(instance.copy_in(&source, place).unwrap(), len as u64));
            // Through the connection it would be two million for each MiB. Dropping what the kernel has of the old file
            // is most of it now.
            let most = 12_000_000 + len as u64 / 4;
            let direct = len > 65_537 && near.iter().any(|near| near == place);
            assert!(!direct || cost.is_none_or(|cost| cost < most), "{place}: {len} bytes, {cost:?}");
        }
        let sums =
            |places: &[&str]| sh(&instance, &format!("md5sum {} | cut -c1-32 | uniq", places.join(" ")));
        let sum = sums(&places);
        assert_eq!(sum.len(), 32, "they are not all the same: {sum}");
        for mut reader in readers {
            reader.stdin.take().unwrap().write_all(b"\n").unwrap();
            let said = reader.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{len}\n{sum}  -\n"));
        }
        for place in ["/written", "/mnt/shared/written", "/tmp/written"] {
            instance.write(place, &bytes).unwrap();
            assert_eq!(sums(&[place]), sum, "{place}");
            instance.remove_file(place).unwrap();
        }
        assert!(std::fs::read(shared.path().join("sub/large")).unwrap() == bytes, "the host has it too");
        // And back, with what the guest has changed since.
        let mut changed = bytes;
        changed[65_000] = b'X';
        for place in &places {
            sh(&instance, &format!("printf X | dd of={place} bs=1 seek=65000 conv=notrunc 2>&1"));
            let back = dir.path().join("back");
            let cost = costs(&|| assert_eq!(instance.copy_out(place, &back).unwrap(), len as u64));
            // Through the connection it would be half a million or more for each MiB.
            let most = 2_000_000 + len as u64 / 8;
            let direct = len > 65_537 && near.iter().any(|near| near == place);
            assert!(!direct || cost.is_none_or(|cost| cost < most), "{place}: {len} bytes, {cost:?}");
            assert!(std::fs::read(back).unwrap() == changed, "{place}, {len} bytes");
        }
        for place in &far {
            instance.remove_file(place).unwrap();
        }
    }
    // Holes stay holes.
    let sparse = std::fs::File::create(&source).unwrap();
    sparse.write_all_at(&[7; 300_000], 5 << 20).unwrap();
    sparse.set_len(40 << 20).unwrap();
    instance.copy_in(&source, "/sparse").unwrap();
    assert_eq!(
        sh(&instance, "stat -c %s /sparse; test $(du -k /sparse | cut -f1) -lt 1000 && echo sparse"),
        "41943040\nsparse"
    );
    instance.copy_out("/sparse", dir.path().join("back")).unwrap();
    assert!(std::fs::read(dir.path().join("back")).unwrap() == std::fs::read(&source).unwrap());
    // What cannot be written says so, here as there.
    for (place, kind) in [("/dev/full", ErrorKind::StorageFull), ("/proc", ErrorKind::IsADirectory)] {
        let error = instance.copy_in(&source, place).unwrap_err();
        assert_eq!(error.kind(), kind, "{place}: {error}");
    }
    // A file system without room says so too, and keeps none of what is too much.
    sh(&instance, "mkdir /full; mount -t tmpfs -o size=9m none /full");
    let error = instance.write("/full/x", vec![1; 17 << 20]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    assert_eq!(sh(&instance, "cat /full/x | wc -c"), (9 << 20).to_string());
    // Nothing of it is left where anybody looks.
    for place in ["/", "/mnt/shared", "/deep/in/empty"] {
        assert_eq!(sh(&instance, &format!("ls -a {place} | grep -c '^[.]cc-'; :")), "0");
    }
    assert!(std::fs::read_dir(shared.path()).unwrap().count() == 3, "sub, memory, large");
}

/// A paused machine answers nothing; to drop its files is no question.
#[test]
fn files_are_dropped_while_the_machine_is_paused() {
    let instance = small().start().unwrap();
    let open = || sh(&instance, "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c /root/held- ; :");
    instance.create_dir_all("/root").unwrap();
    let names: Vec<String> = (0..200).map(|n| format!("/root/held-{n}")).collect();
    let held: Vec<cc::fs::File> = names.iter().map(|name| instance.create(name).unwrap()).collect();
    held.iter().for_each(|file| file.lock().unwrap());
    assert_ne!(open(), "0");
    instance.pause().unwrap();
    let (done, dropped) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        drop(held);
        done.send(()).unwrap();
    });
    let waited = dropped.recv_timeout(std::time::Duration::from_secs(60));
    instance.resume().unwrap();
    waited.expect("dropping does not wait for the machine to go on");
    thread.join().unwrap();
    // What comes next finds them closed.
    for name in &names {
        instance.open(name).unwrap().try_lock().unwrap();
    }
    assert_eq!(open(), "0");
    // One that is waited for when the machine is paused, many times, in whatever moment that is.
    for _ in 0..20 {
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for name in names.iter().take(50) {
                    let file = instance.open(name).unwrap();
                    file.lock().unwrap();
                }
                done.send(()).unwrap();
            });
            instance.pause().unwrap();
            std::thread::yield_now();
            instance.resume().unwrap();
            dropped.recv_timeout(std::time::Duration::from_secs(60)).expect("it goes on");
        });
    }
    assert_eq!(open(), "0");
}
