//! Looks for secrets in the memory of a process: in this one's or, as root, in another's.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod aes;

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Sixteen bytes to look for, kept inverted: a search of our own memory must not find what it looks for in itself.
#[derive(Clone, Debug)]
pub(crate) struct Needle {
    pub(crate) what: String,
    inverted: [u8; 16],
}

/// Every sixteen bytes of a secret, so that a part of it is found as well. What repeats itself tells nothing.
pub(crate) fn needles(what: &str, secret: &[u8]) -> Vec<Needle> {
    let whole = secret.chunks_exact(16).chain(secret.rchunks_exact(16).take(1));
    let tells = |piece: &&[u8]| piece.iter().filter(|b| **b != piece[0]).count() > 8;
    let keep = |piece: &[u8]| Needle { what: what.to_owned(), inverted: std::array::from_fn(|i| !piece[i]) };
    let mut found: Vec<_> = whole.filter(tells).map(keep).collect();
    found.dedup_by_key(|n| n.inverted);
    found
}

/// Where a needle was found.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) what: String,
    pub(crate) at: usize,
    pub(crate) mapping: Mapping,
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:x} in {} [{}]", self.what, self.at, self.mapping.head, self.mapping.flags)
    }
}

/// A line of smaps(5), and its flags.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) head: String,
    flags: String,
}

impl Mapping {
    fn has(&self, flag: &str) -> bool {
        self.flags.split_whitespace().any(|f| f == flag)
    }

    /// Left out of core dumps.
    pub(crate) fn is_undumped(&self) -> bool {
        self.has("dd")
    }

    /// Cannot reach swap.
    pub(crate) fn is_locked(&self) -> bool {
        self.has("lo")
    }
}

/// Where the memory of `process` ("self" or a number) can be written.
pub(crate) fn mappings(process: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in std::fs::read_to_string(format!("/proc/{process}/smaps")).expect("smaps").lines() {
        let head = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = head.split_once('-') {
            let at = |n| usize::from_str_radix(n, 16).expect("an address");
            found.push(Mapping { start: at(start), end: at(end), head: line.into(), flags: String::new() });
        } else if let (Some(flags), Some(last)) = (line.strip_prefix("VmFlags:"), found.last_mut()) {
            last.flags = flags.trim().into();
        }
    }
    found.retain(|m| m.head.contains(" rw"));
    found
}

/// Looks everywhere where `process` can write.
pub(crate) fn search(process: &str, needles: &[Needle]) -> Vec<Hit> {
    const PIECE: usize = 1 << 16;
    // Which two first bytes are worth a closer look.
    let mut first = vec![false; 1 << 16];
    for needle in needles {
        first[usize::from(u16::from_le_bytes([!needle.inverted[0], !needle.inverted[1]]))] = true;
    }
    let memory = File::open(format!("/proc/{process}/mem")).expect("the memory of the process");
    let mut buffer = vec![0; PIECE + 15];
    let own = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
    let own = if process == "self" { own } else { 0..0 };
    let mut hits = Vec::new();
    for mapping in mappings(process) {
        for at in (mapping.start..mapping.end).step_by(PIECE) {
            let want = (PIECE + 15).min(mapping.end - at);
            let Ok(read) = memory.read_at(&mut buffer[..want], at as u64) else { continue };
            for (i, window) in buffer[..read].windows(16).enumerate() {
                if !first[usize::from(u16::from_le_bytes([window[0], window[1]]))] || i >= PIECE {
                    continue;
                }
                let is_here = |n: &&Needle| window.iter().zip(&n.inverted).all(|(w, n)| *w == !n);
                if let Some(needle) = needles.iter().find(is_here)
                    && !own.contains(&(at + i))
                {
                    hits.push(Hit { what: needle.what.clone(), at: at + i, mapping: mapping.clone() });
                }
            }
            buffer.fill(0);
        }
    }
    hits
}

/// One a line.
pub(crate) fn list<'a>(hits: impl IntoIterator<Item = &'a Hit>) -> String {
    hits.into_iter().map(|hit| format!("{hit}\n")).collect()
}
