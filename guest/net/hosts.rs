//! The text of `/etc/hosts` and `/etc/resolv.conf`. Both may be anybody's work: a line that is not as it
//! should be is no line, and every number and list is kept within bounds.

extern crate alloc;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAX_SERVERS: usize = 3;
const MAX_SEARCH: usize = 6;
const MAX_ADDRESSES: usize = 32;

/// How names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Whom to ask, in order.
    pub(crate) servers: Vec<IpAddr>,
    /// What to append to names.
    pub(crate) search: Vec<Vec<u8>>,
    /// Names with so many dots are first tried as they are.
    pub(crate) dots: usize,
    /// Seconds until an answer is not waited for any more.
    pub(crate) timeout: u64,
    /// How often each server is asked.
    pub(crate) attempts: usize,
}

fn lines<'a>(
    text: &'a [u8],
    comments: &'static [u8],
) -> impl Iterator<Item = impl Iterator<Item = &'a [u8]>> {
    text.split(|b| *b == b'\n').map(move |line| {
        let end = line.iter().position(|b| comments.contains(b)).unwrap_or(line.len());
        let line = line.get(..end).unwrap_or_default();
        line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
    })
}

/// The address that a word is.
pub(crate) fn address(word: &[u8]) -> Option<IpAddr> {
    core::str::from_utf8(word).ok()?.parse().ok()
}

fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

/// The addresses that the text of `/etc/hosts` gives `name`.
pub(crate) fn lookup(text: &[u8], name: &[u8]) -> Vec<IpAddr> {
    let name = without_dot(name);
    let mut found = Vec::new();
    for mut words in lines(text, b"#") {
        let Some(ip) = words.next().and_then(address) else { continue };
        if words.any(|word| word.eq_ignore_ascii_case(name))
            && !found.contains(&ip)
            && found.len() < MAX_ADDRESSES
        {
            found.push(ip);
        }
    }
    found
}

/// The addresses of `localhost` and all below it, which are nobody else's whatever servers say.
pub(crate) fn local(name: &[u8]) -> Option<[IpAddr; 2]> {
    let last = without_dot(name).rsplit(|b| *b == b'.').next()?;
    last.eq_ignore_ascii_case(b"localhost")
        .then_some([IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv4Addr::LOCALHOST)])
}

/// What the text of `/etc/resolv.conf` says. Without a server it is one on this machine.
pub(crate) fn config(text: &[u8]) -> Config {
    let mut config = Config { servers: Vec::new(), search: Vec::new(), dots: 1, timeout: 5, attempts: 2 };
    for mut words in lines(text, b"#;") {
        match words.next() {
            Some(b"nameserver") => {
                if let Some(ip) = words.next().and_then(address)
                    && config.servers.len() < MAX_SERVERS
                {
                    config.servers.push(ip);
                }
            }
            Some(b"search" | b"domain") => {
                let domains =
                    words.map(without_dot).filter(|domain| domain.len() < 254 && !domain.is_empty());
                config.search = domains.take(MAX_SEARCH).map(<[u8]>::to_vec).collect();
            }
            Some(b"options") => words.for_each(|word| config.set(word)),
            _ => {}
        }
    }
    if config.servers.is_empty() {
        config.servers.push(IpAddr::from(Ipv4Addr::LOCALHOST));
    }
    config
}

impl Config {
    fn set(&mut self, option: &[u8]) {
        let mut halves = option.splitn(2, |b| *b == b':');
        let name = halves.next().unwrap_or_default();
        let value = halves.next().and_then(|v| core::str::from_utf8(v).ok()).and_then(|v| v.parse().ok());
        let Some(value) = value else { return };
        let value: u64 = value;
        match name {
            b"ndots" => self.dots = value.min(15) as usize,
            b"timeout" => self.timeout = value.clamp(1, 30),
            b"attempts" => self.attempts = value.clamp(1, 5) as usize,
            _ => {}
        }
    }

    /// What to ask for in turn when `name` is wanted.
    pub(crate) fn candidates(&self, name: &[u8]) -> Vec<Vec<u8>> {
        if name.ends_with(b".") {
            return Vec::from([without_dot(name).to_vec()]);
        }
        let searched = self.search.iter().map(|domain| [name, b".", domain].concat());
        let dots = name.iter().filter(|b| **b == b'.').count();
        let mut all: Vec<Vec<u8>> = searched.collect();
        all.insert(if dots >= self.dots { 0 } else { all.len() }, name.to_vec());
        all
    }
}
