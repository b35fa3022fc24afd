//! Large contents on their way into a guest's file, or out of it.
//!
//! Their bytes need not pass through the connection to the guest: there is a file that only the guest's agent finds, in
//! the root and on all mounts, which this process serves. The agent copies from that or to it with `copy_file_range(2)`,
//! which its kernel asks us for, so the guest's processor carries nothing. What is to go into the guest's own memory its
//! agent reads from that file. Either way the guest's kernel sees an ordinary copy. What fails with nothing done goes the
//! ordinary way, which also says what is wrong.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::guest::number;
use crate::agent::files::{Files, Lease};
use crate::agent::protocol::files::Request;

/// Bytes of one offer.
const PIECE: usize = 8 << 20;
/// Offers at once: one is filled while another is copied.
const WINDOW: usize = 2;

/// Copies from offset `at` on what `fill` puts into the buffers it is given with an offset; it leaves one shorter at the
/// end. Gives the offset up to which all has been copied. The lease owes no answer before.
pub(super) fn give(
    files: &Files,
    lease: &mut Lease<'_>,
    fd: i32,
    mut at: u64,
    mut fill: impl FnMut(&mut Vec<u8>, u64) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut under_way, mut spare) = (VecDeque::new(), Vec::new());
    let (mut next, mut ended) = (at, false);
    loop {
        while !ended && under_way.len() < WINDOW {
            let mut bytes: Vec<u8> = spare.pop().unwrap_or_default();
            bytes.resize(PIECE, 0);
            fill(&mut bytes, next)?;
            ended = bytes.len() < PIECE;
            let len = bytes.len() as u64;
            let bytes = Arc::new(bytes);
            let Some(offer) = files.offer(bytes.clone()).filter(|_| len > 0) else {
                ended = true;
                break;
            };
            lease.send(&Request::Take(offer.path(), fd, next, len))?;
            under_way.push_back((offer, bytes, next));
            next += len;
        }
        let Some((offer, bytes, from)) = under_way.pop_front() else { return Ok(at) };
        let answer = lease.answer();
        let copied = answer.and_then(|answer| number(lease, &answer)).unwrap_or(0).min(bytes.len() as u64);
        drop(offer);
        // What lies behind a gap is sent again.
        if from == at {
            at += copied;
        }
        ended |= at < from + bytes.len() as u64;
        spare.extend(Arc::try_unwrap(bytes));
    }
}

/// Copies what a file has from `at` to `until` to `drain`, which is given bytes and their offset. Gives the offset up to
/// which all has been copied; there may be more. The lease owes no answer before.
pub(super) fn take(
    files: &Files,
    lease: &mut Lease<'_>,
    fd: i32,
    mut at: u64,
    until: u64,
    mut drain: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<u64> {
    let mut under_way = VecDeque::new();
    let (mut next, mut ended) = (at, false);
    loop {
        while !ended && next < until && under_way.len() < WINDOW {
            let len = (until - next).min(PIECE as u64);
            let Some(offer) = files.accept(len as usize) else {
                ended = true;
                break;
            };
            lease.send(&Request::Give(offer.path(), fd, next, len))?;
            under_way.push_back((offer, next, len));
            next += len;
        }
        let Some((offer, from, len)) = under_way.pop_front() else { return Ok(at) };
        // How much it is, is seen here.
        let answer = lease.answer();
        let bytes = offer.take();
        drop(offer);
        if from == at && answer.is_ok() {
            drain(&bytes, at)?;
            at += bytes.len() as u64;
        }
        ended |= at < from + len;
    }
}
