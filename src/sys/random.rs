//! The host's entropy.

/// Fills `out` from the operating system; `false` if it has none to give.
#[allow(unsafe_code)]
pub fn fill(out: &mut [u8]) -> bool {
    let mut done = 0;
    while done < out.len() {
        let rest = &mut out[done..];
        // SAFETY: the pointer and length describe `rest`.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match n {
            n if n > 0 => done += n as usize,
            _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
    true
}

/// 64 random bits.
pub fn u64() -> Option<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes).then(|| u64::from_le_bytes(bytes))
}
