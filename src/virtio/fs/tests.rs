//! The device through its queues, with a driver that behaves and with clients that do not.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::spec::*;
use super::*;
use crate::vfs::{HostDir, HostDirOptions, Limits, Overlay};
use crate::virtio::driver::{Driver, Slot};

const ROOT: u64 = 1;

/// A client of one device.
struct Client {
    driver: Driver,
    host: FsHost,
    request: u64,
    answer: u64,
    unique: u64,
}

/// Room for requests and answers, in bytes.
const ROOM: u64 = 2 << 20;

impl Client {
    fn new(fs: Option<Arc<dyn FileSystem>>) -> Self {
        let device = VirtioFs::new("tag", 1).unwrap();
        let host = device.host();
        if let Some(fs) = fs {
            host.serve(fs, Caching::Private);
        }
        let mut driver = Driver::new(Slot::new(Arc::new(device)), 0);
        let (request, answer) = (driver.alloc(ROOM), driver.alloc(ROOM));
        Self { driver, host, request, answer, unique: 0 }
    }

    fn mounted(fs: Arc<dyn FileSystem>) -> Self {
        let mut client = Self::new(Some(fs));
        let answer = client.init(7, 38).unwrap();
        assert_eq!(u32_at(&answer, 0), 7);
        client
    }

    fn memory() -> Self {
        Self::mounted(Arc::new(Overlay::memory(Limits::default())))
    }

    fn init(&mut self, major: u32, minor: u32) -> Result<Vec<u8>, i32> {
        let mut body = words(&[major, minor, 128 << 10, u32::MAX, u32::MAX]);
        body.resize(64, 0);
        self.call(op::INIT, 0, &body)
    }

    /// Puts raw bytes as a request with `room` bytes for the answer on queue 1; gives what came.
    fn raw(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.raw_on(1, request, room)
    }

    fn raw_on(&mut self, queue: usize, request: &[u8], room: u32) -> Vec<u8> {
        let memory = self.driver.slot.ram.memory();
        memory.write_slice(request, GuestAddress(self.request)).unwrap();
        let mut buffers = vec![(self.request, request.len() as u32, false)];
        if room > 0 {
            buffers.push((self.answer, room, true));
        }
        let ring = &mut self.driver.queues[queue];
        ring.add(&buffers).unwrap();
        ring.kick();
        let (_, len) = ring.used().expect("every request is given back");
        self.driver.handle_irq();
        assert!(len <= room, "{len} bytes were written into a buffer of {room}");
        let mut out = vec![0; len as usize];
        self.driver.slot.ram.memory().read_slice(&mut out, GuestAddress(self.answer)).unwrap();
        out
    }

    fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 1;
        let mut out = words(&[(IN_HEADER + body.len()) as u32, opcode]);
        out.extend(self.unique.to_le_bytes());
        out.extend(node.to_le_bytes());
        out.extend(words(&[1000, 1000, 1, 0]));
        out.extend(body);
        out
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_in(opcode, node, body, ROOM as u32)
    }

    fn call_in(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Result<Vec<u8>, i32> {
        let request = self.request(opcode, node, body);
        let answer = self.raw(&request, room);
        assert!(answer.len() >= OUT_HEADER, "an answer has a header");
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), self.unique);
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[OUT_HEADER..].to_vec()),
            error => {
                assert!((-4095..0).contains(&error) && answer.len() == OUT_HEADER, "{error}");
                Err(-error)
            }
        }
    }

    /// Makes and opens a file in the root: node and handle.
    fn create(&mut self, name: &str) -> (u64, u64) {
        let mut body = words(&[0o102, 0o100644, 0, 0]);
        body.extend(name.as_bytes());
        body.push(0);
        let answer = self.call(op::CREATE, ROOT, &body).unwrap();
        (u64_at(&answer, 0), u64_at(&answer, 128))
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let mut body = quads(&[handle, offset]);
        body.extend(words(&[data.len() as u32, 0]));
        body.extend(quads(&[0, 0]));
        body.extend(data);
        self.call(op::WRITE, node, &body).map(|answer| u32_at(&answer, 0))
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let mut body = quads(&[handle, offset]);
        body.extend(words(&[size, 0]));
        body.extend(quads(&[0, 0]));
        self.call(op::READ, node, &body)
    }

    fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<u64, i32> {
        let mut body = name.to_vec();
        body.push(0);
        self.call(op::LOOKUP, parent, &body).map(|answer| u64_at(&answer, 0))
    }

    fn held(&self) -> (usize, usize) {
        self.host.shared.session().unwrap().held()
    }

    /// The device has to be of use after whatever a test did to it.
    fn assert_well(&mut self) {
        assert!(!self.driver.slot.broken());
        self.call(op::GETATTR, ROOT, &quads(&[0, 0])).unwrap();
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
fn quads(quads: &[u64]) -> Vec<u8> {
    quads.iter().flat_map(|q| q.to_le_bytes()).collect()
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const E2BIG: i32 = 7;
const EBADF: i32 = 9;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const ENOSYS: i32 = 38;
const ESTALE: i32 = 116;

#[test]
fn the_configuration_has_tag_and_queues() {
    let client = Client::new(None);
    let config: [u8; 40] = client.driver.slot.config(0);
    assert_eq!((&config[..4], u32_at(&config, 36)), (&b"tag\0"[..], 1));
    assert_eq!(client.driver.queues.len(), 2);
    for bad in ["", "a\0b", "0123456789012345678901234567890123456"] {
        assert!(VirtioFs::new(bad, 1).is_err(), "{bad:?}");
    }
}

#[test]
fn without_a_file_system_a_mount_fails() {
    let mut client = Client::new(None);
    assert_eq!(client.init(7, 38), Err(ENODEV));
    client.host.serve(Arc::new(Overlay::memory(Limits::default())), Caching::Private);
    client.init(7, 38).unwrap();
    client.assert_well();
}

#[test]
fn versions_are_agreed_on_first() {
    let mut client = Client::new(Some(Arc::new(Overlay::memory(Limits::default()))));
    assert_eq!(client.call(op::GETATTR, ROOT, &quads(&[0, 0])), Err(EIO));
    assert!(client.init(6, 0).is_err() && client.init(7, 12).is_err());
    // A newer client is told our version and asks again.
    assert_eq!(u32_at(&client.init(8, 0).unwrap(), 0), 7);
    assert_eq!(client.call(op::GETATTR, ROOT, &quads(&[0, 0])), Err(EIO));
    let answer = client.init(7, 99).unwrap();
    assert_eq!((answer.len(), u32_at(&answer, 4)), (64, 38));
    client.assert_well();
}

#[test]
fn data_goes_through_in_scattered_pages() {
    let mut client = Client::memory();
    let (node, handle) = client.create("f");
    let data: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(client.write(node, handle, 5, &data), Ok(300_000));
    let all = client.read(node, handle, 0, 1 << 20).unwrap();
    assert_eq!((&all[..5], &all[5..]), (&[0; 5][..], &data[..]));
    // The answer in pieces of odd sizes, as a reader with small buffers has it.
    let mut body = quads(&[handle, 5]);
    body.extend(words(&[10_000, 0]));
    body.extend(quads(&[0, 0]));
    let request = client.request(op::READ, node, &body);
    client.driver.slot.ram.memory().write_slice(&request, GuestAddress(client.request)).unwrap();
    let (to, ring) = (client.answer, &mut client.driver.queues[1]);
    let pieces = [(0, 16), (20_000, 1), (30_000, 4095), (40_000, 5904)];
    let mut buffers = vec![(client.request, request.len() as u32, false)];
    buffers.extend(pieces.iter().map(|&(at, len)| (to + at, len, true)));
    ring.add(&buffers).unwrap();
    ring.kick();
    assert_eq!(ring.used().unwrap().1, 10_016);
    let mut joined = Vec::new();
    for (at, len) in &pieces[1..] {
        let mut piece = vec![0; *len as usize];
        client.driver.slot.ram.memory().read_slice(&mut piece, GuestAddress(to + at)).unwrap();
        joined.extend(piece);
    }
    assert_eq!(joined, data[..10_000]);
}

#[test]
fn files_of_the_host_are_read_into_guest_memory() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(dir.path().join("f"), &data).unwrap();
    let fs = HostDir::new(dir.path(), HostDirOptions::default()).unwrap();
    let mut client = Client::mounted(Arc::new(fs));
    let node = client.lookup(ROOT, b"f").unwrap();
    let handle = u64_at(&client.call(op::OPEN, node, &words(&[2, 0])).unwrap(), 0);
    assert_eq!(client.read(node, handle, 0, 1 << 20).unwrap(), data);
    assert_eq!(client.read(node, handle, 99_990, 100).unwrap(), data[99_990..]);
    assert_eq!(client.write(node, handle, 100_000, b"more"), Ok(4));
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap()[100_000..], *b"more");
}

#[test]
fn r3_1_names_are_hostile() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("secret"), "x").unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("plain"), "y").unwrap();
    std::os::unix::fs::symlink("../secret", inner.join("link")).unwrap();
    let fs = HostDir::new(&inner, HostDirOptions::default()).unwrap();
    let mut client = Client::mounted(Arc::new(fs));
    for bad in [&b".."[..], b".", b"", b"a/b", b"../secret", b"/etc"] {
        assert_eq!(client.lookup(ROOT, bad), Err(EINVAL), "{}", bad.escape_ascii());
        for (opcode, fixed) in [(op::MKNOD, 16), (op::MKDIR, 8), (op::CREATE, 16), (op::UNLINK, 0)] {
            let mut body = vec![0; fixed];
            body.extend([bad, b"\0"].concat());
            assert!(client.call(opcode, ROOT, &body).is_err(), "{opcode} {}", bad.escape_ascii());
        }
    }
    assert_eq!(client.lookup(ROOT, &[b'a'; 256]), Err(ENAMETOOLONG));
    // No NUL at the end at all.
    assert_eq!(client.call(op::LOOKUP, ROOT, b"plain"), Err(EINVAL));
    // A link is a link: it can be read, and is not followed.
    let link = client.lookup(ROOT, b"link").unwrap();
    assert_eq!(client.call(op::READLINK, link, &[]).unwrap(), b"../secret");
    assert!(client.call(op::OPEN, link, &words(&[0, 0])).is_err());
    // The control: what is there under its own name is found.
    assert!(client.lookup(ROOT, b"plain").unwrap() > 1);
    assert!(outer.path().join("secret").exists());
}

#[test]
fn forged_and_stale_nodes_and_handles_are_refused() {
    let mut client = Client::memory();
    let (node, handle) = client.create("f");
    for forged in [0, node + 1, u64::MAX, 1 << 63] {
        assert_eq!(client.call(op::GETATTR, forged, &quads(&[0, 0])), Err(ESTALE), "{forged}");
        assert!(client.lookup(forged, b"x").is_err());
        assert!(client.call(op::OPEN, forged, &words(&[2, 0])).is_err());
    }
    for forged in [handle + 1, u64::MAX] {
        assert_eq!(client.read(node, forged, 0, 10), Err(EBADF));
        assert_eq!(client.write(node, forged, 0, b"x"), Err(EBADF));
    }
    // A file's handle is not a directory's, nor that of a file which is not open.
    assert!(
        client.call(op::READDIR, ROOT, &[&quads(&[handle, 0])[..], &words(&[4096, 0])].concat()).is_err()
    );
    let (other, closed) = client.create("g");
    client.call(op::RELEASE, other, &quads(&[closed, 0, 0])).unwrap();
    assert_eq!(client.read(other, closed, 0, 10), Err(EBADF));
    assert_eq!(client.read(other, handle, 0, 10), Err(EBADF));
    // Closing twice or what is somebody else's changes nothing.
    for _ in 0..3 {
        client.call(op::RELEASE, node, &quads(&[handle, 0, 0])).unwrap();
        client.call(op::RELEASE, node, &quads(&[77, 0, 0])).unwrap();
    }
    assert_eq!(client.read(node, handle, 0, 10), Err(EBADF));
    client.assert_well();
}

#[test]
fn offsets_at_the_end_of_the_world() {
    let mut client = Client::memory();
    let (node, handle) = client.create("f");
    for offset in [1 << 63, (1 << 63) - 1, u64::MAX, u64::MAX - 4095] {
        assert!(client.write(node, handle, offset, b"x").is_err(), "{offset:#x}");
        // Beyond the end there is nothing, or it is no offset.
        assert!(client.read(node, handle, offset, 10).is_ok_and(|d| d.is_empty()) || offset >> 63 == 1);
        let fallocate = [quads(&[handle, offset, u64::MAX]), words(&[0, 0])].concat();
        assert!(client.call(op::FALLOCATE, node, &fallocate).is_err());
        for whence in [SEEK_DATA, SEEK_HOLE] {
            let seek = [quads(&[handle, offset]), words(&[whence, 0])].concat();
            assert!(client.call(op::LSEEK, node, &seek).is_err());
        }
        let copy = quads(&[handle, offset, node, handle, 0, u64::MAX, 0]);
        assert!(!client.call(op::COPY_FILE_RANGE, node, &copy).is_ok_and(|n| u32_at(&n, 0) > 0));
        let mut set = words(&[fattr::SIZE, 0]);
        set.extend(quads(&[0, offset]));
        set.resize(88, 0);
        assert!(client.call(op::SETATTR, node, &set).is_err(), "{offset:#x}");
    }
    client.assert_well();
}

#[test]
fn every_request_is_answered_however_short() {
    let mut client = Client::memory();
    for opcode in 0..64 {
        if [op::DESTROY, op::INIT].contains(&opcode) {
            continue;
        }
        for len in 0..100 {
            let request = client.request(opcode, ROOT, &vec![0xff; len]);
            let answer = client.raw(&request, 4096);
            let silent = [op::FORGET, op::BATCH_FORGET, op::INTERRUPT].contains(&opcode);
            assert_eq!(answer.is_empty(), silent, "{opcode} with {len} bytes");
        }
    }
    for unknown in [0, 7, 19, 31, 99, u32::MAX] {
        assert_eq!(client.call(unknown, ROOT, &[0; 64]), Err(ENOSYS), "{unknown}");
    }
    client.assert_well();
}

#[test]
fn headers_that_lie_are_survived() {
    let mut client = Client::memory();
    for len in [0, 1, 39, 41, 4096, u32::MAX] {
        let mut request = client.request(op::GETATTR, ROOT, &[]);
        request[..4].copy_from_slice(&len.to_le_bytes());
        assert!(client.raw(&request, 4096).is_empty(), "{len}");
    }
    for cut in 0..IN_HEADER {
        let request = client.request(op::GETATTR, ROOT, &quads(&[0, 0]));
        assert!(client.raw(&request[..cut.max(1)], 4096).is_empty());
    }
    // More than any request has.
    let big = client.request(op::SETXATTR, ROOT, &vec![0; 200_000]);
    let answer = client.raw(&big, 4096);
    assert_eq!(u32_at(&answer, 4) as i32, -E2BIG);
    client.assert_well();
}

#[test]
fn r8_answers_are_never_longer_than_the_buffer() {
    let mut client = Client::memory();
    let (node, handle) = client.create("f");
    client.write(node, handle, 0, &[7; 5000]).unwrap();
    for room in 0..OUT_HEADER as u32 {
        let request = client.request(op::GETATTR, ROOT, &quads(&[0, 0]));
        assert!(client.raw(&request, room).is_empty());
    }
    assert_eq!(client.call_in(op::GETATTR, ROOT, &quads(&[0, 0]), 100), Err(EIO));
    let mut body = quads(&[handle, 0]);
    body.extend(words(&[5000, 0]));
    body.extend(quads(&[0, 0]));
    assert_eq!(client.call_in(op::READ, node, &body, 116).unwrap(), [7; 100]);
    let dir = u64_at(&client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let list = [quads(&[dir, 0]), words(&[1 << 30, 0])].concat();
    assert_eq!(client.call_in(op::READDIR, ROOT, &list, 20).unwrap(), b"");
    assert!(client.call_in(op::READDIR, ROOT, &list, 60).unwrap().len() <= 44);
    client.assert_well();
}

#[test]
fn a_write_has_the_bytes_that_it_says() {
    let mut client = Client::memory();
    let (node, handle) = client.create("f");
    for size in [11, 4096, u32::MAX] {
        let mut body = quads(&[handle, 0]);
        body.extend(words(&[size, 0]));
        body.extend(quads(&[0, 0]));
        body.extend(b"ten bytes!");
        assert_eq!(client.call(op::WRITE, node, &body), Err(EINVAL), "{size}");
    }
    assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"");
    assert_eq!(client.write(node, handle, 0, b"ten bytes!"), Ok(10));
}

#[test]
fn what_the_client_held_comes_back() {
    let mut client = Client::memory();
    for n in 0..10 {
        client.create(&format!("f{n}"));
    }
    client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap();
    assert_eq!(client.held(), (10, 11));
    // Forgetting more than was taken, and what was never seen.
    let node = client.lookup(ROOT, b"f0").unwrap();
    for node in [node, 9999, ROOT] {
        let request = client.request(op::FORGET, node, &quads(&[u64::MAX]));
        assert!(client.raw_on(0, &request, 0).is_empty());
    }
    assert_eq!(client.held().0, 9);
    let mut batch = words(&[u32::MAX, 0]);
    batch.extend(quads(&[client.lookup(ROOT, b"f1").unwrap(), 2]));
    let request = client.request(op::BATCH_FORGET, 0, &batch);
    client.raw_on(0, &request, 0);
    assert_eq!(client.held().0, 8);
    client.call(op::DESTROY, 0, &[]).unwrap();
    assert_eq!(client.held(), (0, 0));
    assert_eq!(client.lookup(ROOT, b"f2"), Err(EIO));
    // The same again by a reset of the device.
    client.init(7, 38).unwrap();
    client.lookup(ROOT, b"f2").unwrap();
    assert_eq!(client.held(), (1, 0));
    client.driver.slot.w(reg_status(), 0);
    assert_eq!(client.held(), (0, 0));
}

fn reg_status() -> u32 {
    crate::virtio::spec::reg::VIRTIO_MMIO_STATUS
}

#[test]
fn an_absent_name_may_be_remembered_where_nobody_else_writes() {
    let mut client = Client::memory();
    let answer = client.call(op::LOOKUP, ROOT, b"none\0").unwrap();
    assert_eq!((u64_at(&answer, 0), u64_at(&answer, 16) > 0), (0, true));
    let dir = tempfile::tempdir().unwrap();
    let fs = HostDir::new(dir.path(), HostDirOptions::default()).unwrap();
    client.host.serve(Arc::new(fs), Caching::Shared);
    client.init(7, 38).unwrap();
    assert_eq!(client.lookup(ROOT, b"none"), Err(ENOENT));
}

#[test]
fn a_listing_takes_as_many_lookups_as_entries_it_shows() {
    let mut client = Client::memory();
    for n in 0..500 {
        let (node, handle) = client.create(&format!("file-{n}"));
        client.call(op::RELEASE, node, &quads(&[handle, 0, 0])).unwrap();
    }
    client.call(op::DESTROY, 0, &[]).unwrap();
    client.init(7, 38).unwrap();
    let dir = u64_at(&client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let body = [quads(&[dir, cookie]), words(&[4096, 0])].concat();
        let listing = client.call(op::READDIRPLUS, ROOT, &body).unwrap();
        if listing.is_empty() {
            break;
        }
        let mut at = 0;
        while at < listing.len() {
            let node = u64_at(&listing, at);
            let (ino, next, name) =
                (u64_at(&listing, at + 128), u64_at(&listing, at + 136), u32_at(&listing, at + 144));
            assert_ne!(ino, 0, "R3.8");
            seen += usize::from(node != 0);
            cookie = next;
            at += (128 + 24 + name as usize).next_multiple_of(8);
        }
    }
    assert_eq!((seen, client.held().0), (500, 500));
}

#[test]
fn requests_of_random_bytes_never_break_the_device() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("f")).unwrap();
    let fs =
        HostDir::new(dir.path(), HostDirOptions { read_only: true, ..HostDirOptions::default() }).unwrap();
    let mut client = Client::mounted(Arc::new(fs));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let len = (random() % 160) as usize;
        let body: Vec<u8> = (0..len).map(|_| if random() % 3 == 0 { 0 } else { random() as u8 }).collect();
        let opcode = (random() % 56) as u32;
        let node = if random() % 4 == 0 { random() } else { random() % 4 };
        let request = client.request(opcode, node, &body);
        client.raw_on((random() % 2) as usize, &request, (random() % 300) as u32);
    }
    client.init(7, 38).unwrap();
    client.assert_well();
}

#[test]
fn an_offer_is_copied_from_and_nothing_else() {
    let mut client = Client::memory();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let offer = client.host.offer(Arc::new(bytes.clone())).unwrap();
    let name = offer.name().to_bytes().to_vec();
    let found = client.call(op::LOOKUP, ROOT, &[&name[..], b"\0"].concat()).unwrap();
    let node = u64_at(&found, 0);
    let (entry_ttl, attr_ttl) = (u64_at(&found, 16), u64_at(&found, 24));
    assert_eq!((entry_ttl, attr_ttl), (0, 0), "the name may be forgotten at once");
    assert_eq!(u64_at(&client.call(op::GETATTR, node, &quads(&[0, 0])).unwrap(), 24), 5_000_000);
    let handle = u64_at(&client.call(op::OPEN, node, &words(&[0, 0])).unwrap(), 0);
    // In pieces, from and to any place.
    let (to, to_handle) = client.create("f");
    let mut done = 0;
    while done < 5_000_000 {
        let copy = quads(&[handle, done, to, to_handle, 7 + done, 1 << 40, 0]);
        let n = u32_at(&client.call(op::COPY_FILE_RANGE, node, &copy).unwrap(), 0);
        assert!((1..=2 << 20).contains(&n));
        done += u64::from(n);
    }
    assert_eq!(done, 5_000_000);
    let copied: Vec<u8> =
        (0..5).flat_map(|n| client.read(to, to_handle, 7 + n * 1_000_000, 1_000_000).unwrap()).collect();
    assert!(copied == bytes);
    // Not beyond its end, not to what is not open, not beyond all offsets.
    for (from, expected) in [(5_000_000, Ok(0)), (u64::MAX, Ok(0))] {
        let copy = quads(&[handle, from, to, to_handle, 0, 10, 0]);
        assert_eq!(client.call(op::COPY_FILE_RANGE, node, &copy).map(|n| u32_at(&n, 0)), expected);
    }
    let copy = quads(&[handle, 0, to, to_handle + 1, 0, 10, 0]);
    assert_eq!(client.call(op::COPY_FILE_RANGE, node, &copy), Err(EBADF));
    for at in [u64::MAX, (1 << 63) - 1] {
        let copy = quads(&[handle, 0, to, to_handle, at, 10, 0]);
        assert!(client.call(op::COPY_FILE_RANGE, node, &copy).is_err());
    }
    // It can be read, in any order and not beyond its end, into no more room than there is.
    for (at, size) in [(0, 10), (4_999_990, 100), (1_234_567, 1 << 20), (5_000_000, 10), (u64::MAX, 10)] {
        let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        assert!(client.read(node, handle, at, size).unwrap() == rest[..rest.len().min(size as usize)]);
    }
    for size in [(1 << 20) + 1, u32::MAX] {
        assert_eq!(client.read(node, handle, 0, size).unwrap().len(), 1 << 20);
    }
    for room in [OUT_HEADER as u32, OUT_HEADER as u32 + 1, 100] {
        let read = [&quads(&[handle, 7])[..], &words(&[50, 0]), &quads(&[0, 0])].concat();
        let got = client.call_in(op::READ, node, &read, room).unwrap();
        assert_eq!(got, bytes[7..][..50.min(room as usize - OUT_HEADER)]);
    }
    // It is no file otherwise: not written, changed, listed, removed.
    assert_eq!(client.write(node, handle, 0, b"x"), Err(EBADF));
    assert!(client.lookup(node, &name).is_err());
    let mut set = words(&[fattr::SIZE, 0]);
    set.resize(88, 0);
    assert!(client.call(op::SETATTR, node, &set).is_err());
    assert!(client.call(op::UNLINK, ROOT, &[&name[..], b"\0"].concat()).is_err());
    client.call(op::RELEASE, node, &quads(&[handle, 0, 0])).unwrap();
    let forget = client.request(op::FORGET, node, &quads(&[1]));
    assert!(client.raw(&forget, 4096).is_empty());
    let dir = u64_at(&client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let list = [&quads(&[dir, 0])[..], &words(&[4096, 0])].concat();
    let listed = client.call(op::READDIR, ROOT, &list).unwrap();
    assert!(listed.windows(1).any(|part| part == b"f") && !listed.windows(4).any(|part| part == b".cc-"));

    // A clone does not have it, nor anybody when it is over.
    let mut clone = Client::new(None);
    clone.host.serve_fork(&client.host.fork().unwrap().unwrap()).unwrap();
    assert_eq!(clone.call(op::GETATTR, node, &quads(&[0, 0])), Err(ESTALE));
    drop(offer);
    let copy = quads(&[handle, 0, to, to_handle, 0, 10, 0]);
    assert_eq!(client.call(op::COPY_FILE_RANGE, node, &copy), Err(EBADF));
    assert_eq!(client.call(op::GETATTR, node, &quads(&[0, 0])), Err(ESTALE));
    assert!(client.call(op::OPEN, node, &words(&[0, 0])).is_err());
    // Not without bound.
    let many: Vec<_> = std::iter::from_fn(|| client.host.offer(Arc::default())).collect();
    assert_eq!(many.len(), 64);
    drop(many);
    assert!(client.host.offer(Arc::default()).is_some());
    client.assert_well();
}

#[test]
fn an_offer_is_copied_to_and_takes_no_more_than_it_says() {
    let mut client = Client::memory();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    let (from, handle) = client.create("f");
    for (n, part) in bytes.chunks(1_000_000).enumerate() {
        client.write(from, handle, n as u64 * 1_000_000, part).unwrap();
    }
    let offer = client.host.accept(2_500_000).unwrap();
    let node = client.lookup(ROOT, offer.name().to_bytes()).unwrap();
    client.call(op::OPEN, node, &words(&[1, 0])).unwrap();
    let mut copy = |offset: u64, to: u64, to_offset: u64| {
        let copy = quads(&[handle, offset, to, 0, to_offset, 1 << 40, 0]);
        client.call(op::COPY_FILE_RANGE, from, &copy).map(|n| u64::from(u32_at(&n, 0)))
    };
    let mut done = 0;
    while done < 2_500_000 {
        let n = copy(100 + done, node, done).unwrap();
        assert!((1..=2 << 20).contains(&n));
        done += n;
    }
    // Full, and in no other order.
    assert_eq!((done, copy(0, node, done)), (2_500_000, Ok(0)));
    for odd in [0, 1, done - 1, done + 1, u64::MAX] {
        assert_eq!(copy(0, node, odd), Err(EINVAL));
    }
    assert!(offer.take() == bytes[100..2_500_100]);
    // At the file's end; from nowhere.
    assert_eq!(copy(2_999_990, node, 0), Ok(10));
    assert_eq!(copy(3_000_000, node, 10), Ok(0));
    assert_eq!(offer.take(), bytes[2_999_990..]);
    let forged = quads(&[handle + 1, 0, node, 0, 0, 10, 0]);
    assert_eq!(client.call(op::COPY_FILE_RANGE, from, &forged), Err(EBADF));
    // From one offer to another there is nothing to copy.
    let source = client.host.offer(Arc::new(bytes)).unwrap();
    let source_node = client.lookup(ROOT, source.name().to_bytes()).unwrap();
    let between = quads(&[0, 0, node, 0, 0, 10, 0]);
    assert_eq!(client.call(op::COPY_FILE_RANGE, source_node, &between), Err(EINVAL));
    drop(offer);
    let late = quads(&[handle, 0, node, 0, 0, 10, 0]);
    assert!(client.call(op::COPY_FILE_RANGE, from, &late).is_err());
    assert_eq!(client.write(node, 0, 0, b"x"), Err(EBADF));
    client.assert_well();
}

#[test]
fn an_offer_can_be_in_several_file_systems() {
    let (mut root, mut mount, nothing) = (Client::memory(), Client::memory(), Client::new(None));
    let mut offer = root.host.accept(10).unwrap();
    let name = offer.name().to_bytes().to_vec();
    assert_eq!(mount.lookup(ROOT, &name), Ok(0), "it is not there yet");
    // The other numbers its nodes by itself.
    let _before = mount.host.offer(Arc::default()).unwrap();
    assert!(mount.host.share(&mut offer));
    assert!(!mount.host.share(&mut offer), "it is there already");
    assert!(!nothing.host.share(&mut offer), "there is no file system");
    let nodes = [root.lookup(ROOT, &name).unwrap(), mount.lookup(ROOT, &name).unwrap()];
    // What one side has open is nothing to the other, and both put their bytes into one file.
    let ((from, handle), (file, open)) = (root.create("r"), mount.create("m"));
    root.write(from, handle, 0, b"root").unwrap();
    mount.write(file, open, 0, b"mounted").unwrap();
    let copy = |client: &mut Client, (from, handle): (u64, u64), to: u64, at: u64| {
        let copy = quads(&[handle, 0, to, 0, at, 100, 0]);
        client.call(op::COPY_FILE_RANGE, from, &copy).map(|n| u32_at(&n, 0))
    };
    assert_eq!(copy(&mut root, (from, handle), nodes[0], 0), Ok(4));
    assert_eq!(copy(&mut root, (from, handle), nodes[1], 4), Err(EBADF), "the other's node");
    assert_eq!(copy(&mut root, (from, handle + 1), nodes[0], 4), Err(EBADF), "the other's handle");
    assert_eq!(copy(&mut mount, (file, open), nodes[1], 4), Ok(6));
    assert_eq!(copy(&mut root, (from, handle), nodes[0], 10), Ok(0), "it is full");
    assert_eq!(offer.take(), b"rootmounte");
    drop(offer);
    for (client, node) in [(&mut root, nodes[0]), (&mut mount, nodes[1])] {
        assert_eq!(client.lookup(ROOT, &name), Ok(0));
        assert!(client.write(node, 0, 0, b"x").is_err());
        client.assert_well();
    }
    // Where there is no room for it, it is in the others.
    let many: Vec<_> = std::iter::from_fn(|| mount.host.offer(Arc::default())).collect();
    assert_eq!(many.len(), 63);
    let mut offer = root.host.offer(Arc::new(b"bytes".to_vec())).unwrap();
    assert!(!mount.host.share(&mut offer));
    let node = root.lookup(ROOT, offer.name().to_bytes()).unwrap();
    assert_eq!(root.read(node, 0, 0, 10).unwrap(), b"bytes");
}
