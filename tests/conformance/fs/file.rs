//! `File`: `Read`, `Write`, `Seek`, `FileExt`.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

use super::{Fs, Place, pattern};

pub(crate) fn read_write_seek(at: &Place<'_, impl Fs + Sync>) {
    let path = at.path("f");
    let mut file = at.on.create_new(&path).unwrap();
    assert_eq!(file.write(b"0123456789").unwrap(), 10);
    assert_eq!(file.seek(SeekFrom::Start(2)).unwrap(), 2);
    let mut two = [0; 2];
    file.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"23");
    assert_eq!(file.seek(SeekFrom::Current(-1)).unwrap(), 3);
    assert_eq!(file.seek(SeekFrom::End(-1)).unwrap(), 9);
    assert_eq!(file.read(&mut [0; 8]).unwrap(), 1);
    assert_eq!(file.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(file.read(&mut []).unwrap(), 0);
    assert_eq!(file.seek(SeekFrom::Current(-100)).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(file.seek(SeekFrom::End(10)).unwrap(), 20, "beyond the end is a place too");
    file.write_all(b"x").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 21);
    file.flush().unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    // By reference too, as std's.
    let shared = &file;
    (&mut &*shared).seek(SeekFrom::Start(20)).unwrap();
    let mut end = String::new();
    (&mut &*shared).read_to_string(&mut end).unwrap();
    assert_eq!(end, "x");
    let invalid = at.file("invalid", b"\xff\xfe");
    let mut text = String::new();
    let error = at.on.open(&invalid).unwrap().read_to_string(&mut text).unwrap_err();
    assert_eq!((error.kind(), text.as_str()), (ErrorKind::InvalidData, ""));
    assert_eq!(at.on.read_to_string(&invalid).unwrap_err().kind(), ErrorKind::InvalidData);
    // A directory can be opened and not read.
    let dir = at.on.open(&at.dir).unwrap();
    assert_eq!((&dir).read(&mut [0]).unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(at.on.read(&at.dir).unwrap_err().kind(), ErrorKind::IsADirectory);
}

pub(crate) fn positions_are_shared_by_clones(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"abcdef");
    let mut first = at.on.open(&path).unwrap();
    let mut second = first.try_clone().unwrap();
    let mut other = at.on.open(&path).unwrap();
    let mut two = [0; 2];
    first.read_exact(&mut two).unwrap();
    second.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"cd");
    other.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"ab");
    drop(first);
    second.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"ef");
    // The open file outlives its name.
    at.on.remove_file(&path).unwrap();
    second.rewind().unwrap();
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"abcdef");
}

pub(crate) fn at_offsets(at: &Place<'_, impl Fs + Sync>) {
    let file = at.on.create_new(at.path("f")).unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    assert_eq!(file.write_at(b"AB", 3).unwrap(), 2);
    let mut four = [0; 4];
    assert_eq!(file.read_at(&mut four, 2).unwrap(), 4);
    assert_eq!(&four, b"2AB5");
    assert_eq!(file.read_at(&mut four, 8).unwrap(), 2);
    assert_eq!(file.read_at(&mut four, 100).unwrap(), 0);
    assert_eq!(file.read_exact_at(&mut four, 8).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    file.read_exact_at(&mut four, 6).unwrap();
    assert_eq!(&four, b"6789");
    assert_eq!((&file).stream_position().unwrap(), 0, "the position stayed");
    let large = pattern(1_000_001);
    file.write_all_at(&large, 7).unwrap();
    let mut back = vec![0; large.len()];
    file.read_exact_at(&mut back, 7).unwrap();
    assert!(back == large);
}

pub(crate) fn lengths_and_holes(at: &Place<'_, impl Fs + Sync>) {
    let path = at.path("f");
    let mut file = at.on.create_new(&path).unwrap();
    file.write_all(b"0123456789").unwrap();
    file.set_len(4).unwrap();
    assert_eq!(at.on.read(&path).unwrap(), b"0123");
    assert_eq!(file.stream_position().unwrap(), 10);
    file.set_len(6).unwrap();
    assert_eq!(at.on.read(&path).unwrap(), b"0123\0\0");
    file.set_len(1 << 30).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20, "{metadata:?}");
    assert_eq!(file.set_len(u64::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(at.on.open(&path).unwrap().set_len(0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub(crate) fn large_content(at: &Place<'_, impl Fs + Sync>) {
    let content = pattern(5 * 1024 * 1024 + 13);
    let path = at.path("f");
    at.on.write(&path, &content).unwrap();
    assert!(at.on.read(&path).unwrap() == content);
    // Through handles, in pieces that fit nothing.
    let mut file = at.on.create(at.path("g")).unwrap();
    for piece in content.chunks(777_777) {
        file.write_all(piece).unwrap();
    }
    drop(file);
    let mut file = at.on.open(at.path("g")).unwrap();
    let mut back = vec![0; 300_000];
    file.read_exact(&mut back).unwrap();
    assert_eq!(file.read_to_end(&mut back).unwrap(), content.len() - 300_000);
    assert!(back == content);
    assert_eq!(file.read_to_end(&mut back).unwrap(), 0);
    assert_eq!(at.sh("cmp f g && echo same"), "same");
}

pub(crate) fn from_many_threads(at: &Place<'_, impl Fs + Sync>) {
    let shared = at.on.create_new(at.path("shared")).unwrap();
    std::thread::scope(|scope| {
        for n in 0..24u64 {
            let shared = &shared;
            scope.spawn(move || {
                let path = at.path(&format!("{n}"));
                for round in 0..10u64 {
                    let content = pattern((n * 1000 + round) as usize);
                    at.on.write(&path, &content).unwrap();
                    assert!(at.on.read(&path).unwrap() == content);
                    shared.write_all_at(&n.to_le_bytes(), n * 8).unwrap();
                }
                at.on.remove_file(&path).unwrap();
            });
        }
    });
    assert_eq!(at.names(&at.dir), ["shared"]);
    let expected: Vec<u8> = (0..24u64).flat_map(u64::to_le_bytes).collect();
    assert_eq!(at.on.read(at.path("shared")).unwrap(), expected);
}

pub(crate) fn whole_files(at: &Place<'_, impl Fs + Sync>) {
    let path = at.path("f");
    for len in [0, 1, 4095, 4096, 65_536, 262_143, 262_144, 262_145, 600_000] {
        let content = pattern(len);
        at.on.write(&path, &content).unwrap();
        assert_eq!(at.on.metadata(&path).unwrap().len(), len as u64);
        assert!(at.on.read(&path).unwrap() == content, "{len} bytes");
    }
    at.on.write(&path, "text").unwrap();
    assert_eq!(at.on.read_to_string(&path).unwrap(), "text", "what was longer is gone");
    assert_eq!(at.on.metadata(&path).unwrap().mode() & 0o7777, 0o644);
}

pub(crate) fn growing_and_special_files(at: &Place<'_, impl Fs + Sync>) {
    // Files whose length says nothing.
    let status = at.on.read_to_string("/proc/self/status").unwrap();
    assert!(status.starts_with("Name:"), "{status}");
    assert_eq!(at.on.read("/dev/null").unwrap(), b"");
    at.on.write("/dev/null", vec![1; 300_000]).unwrap();
    let mut zeros = [1; 100];
    at.on.open("/dev/zero").unwrap().read_exact(&mut zeros).unwrap();
    assert_eq!(zeros, [0; 100]);
    assert!(at.on.metadata("/dev/zero").unwrap().file_type().is_char_device());
    let full = at.on.write("/dev/full", b"x").unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let full = at.on.write("/dev/full", vec![1; 3_000_000]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    // A reader sees what is appended.
    let path = at.file("log", b"one");
    let (mut reader, mut writer) =
        (at.on.open(&path).unwrap(), at.on.open_options().append(true).open(&path).unwrap());
    let mut seen = Vec::new();
    reader.read_to_end(&mut seen).unwrap();
    writer.write_all(b" two").unwrap();
    reader.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"one two");
}

pub(crate) fn a_waiting_pipe_holds_up_nobody(at: &Place<'_, impl Fs + Sync>) {
    at.sh("mkfifo fifo; for n in 0 1 2 3 4 5 6 7; do mkfifo p$n; done");
    std::thread::scope(|scope| {
        // Opening a pipe waits for its other end, and more of them wait than workers are kept.
        let waiting: Vec<_> =
            (0..8).map(|n| scope.spawn(move || at.on.read(at.path(&format!("p{n}"))).unwrap())).collect();
        let reader = scope.spawn(|| at.on.read(at.path("fifo")).unwrap());
        for n in 0..20 {
            at.on.write(at.path("f"), pattern(n)).unwrap();
            assert!(!reader.is_finished());
        }
        let mut writer = at.on.open_options().write(true).open(at.path("fifo")).unwrap();
        writer.write_all(b"first ").unwrap();
        at.on.write(at.path("f"), b"").unwrap();
        writer.write_all(&pattern(300_000)).unwrap();
        // Dropping it is what tells the reader.
        drop(writer);
        let content = reader.join().unwrap();
        assert_eq!(content.len(), 300_006);
        assert!(content.starts_with(b"first ") && content[6..] == pattern(300_000));
        for (n, waiting) in waiting.into_iter().enumerate() {
            at.on.write(at.path(&format!("p{n}")), format!("{n}")).unwrap();
            assert_eq!(waiting.join().unwrap(), format!("{n}").as_bytes());
        }
    });
    // Nobody reads any more.
    let (mut reader, mut writer) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| at.on.open_options().write(true).open(at.path("fifo")).unwrap());
        (at.on.open(at.path("fifo")).unwrap(), writer.join().unwrap())
    });
    writer.write_all(b"x").unwrap();
    reader.read_exact(&mut [0]).unwrap();
    drop(reader);
    assert_eq!(writer.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}
