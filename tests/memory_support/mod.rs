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

/// A volume key of AES-256-XTS, and the schedules of both its halves in both directions.
pub(crate) fn of_key(key: &[u8]) -> Vec<Needle> {
    let schedules =
        key.chunks(32).flat_map(|half| [aes::round_keys(half), aes::inverse_round_keys(half)].concat());
    let rounds = schedules.flat_map(|round| needles("a round key", &round));
    needles("the key", key).into_iter().chain(rounds).collect()
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

/// What is looked for, and which two first bytes are worth a closer look.
struct Search<'a> {
    needles: &'a [Needle],
    first: Vec<bool>,
}

const PIECE: usize = 1 << 16;

impl<'a> Search<'a> {
    fn of(needles: &'a [Needle]) -> Self {
        let mut first = vec![false; 1 << 16];
        for needle in needles {
            first[usize::from(u16::from_le_bytes([!needle.inverted[0], !needle.inverted[1]]))] = true;
        }
        Self { needles, first }
    }

    /// Where the needles are that begin in the first `PIECE` bytes.
    fn hits<'b>(&'b self, bytes: &'b [u8]) -> impl Iterator<Item = (usize, &'a Needle)> + 'b {
        let near = |window: &[u8]| self.first[usize::from(u16::from_le_bytes([window[0], window[1]]))];
        let windows = bytes.windows(16).enumerate().take(PIECE);
        windows.filter(move |(_, window)| near(window)).filter_map(|(i, window)| {
            let is_here = |n: &&Needle| window.iter().zip(&n.inverted).all(|(w, n)| *w == !n);
            self.needles.iter().find(is_here).map(|needle| (i, needle))
        })
    }
}

/// Looks everywhere where `process` can write.
pub(crate) fn search(process: &str, needles: &[Needle]) -> Vec<Hit> {
    let search = Search::of(needles);
    let memory = File::open(format!("/proc/{process}/mem")).expect("the memory of the process");
    let mut buffer = vec![0; PIECE + 15];
    let own = buffer.as_ptr() as usize..buffer.as_ptr() as usize + buffer.len();
    let own = if process == "self" { own } else { 0..0 };
    let mut hits = Vec::new();
    for mapping in mappings(process) {
        for at in (mapping.start..mapping.end).step_by(PIECE) {
            let want = (PIECE + 15).min(mapping.end - at);
            let Ok(read) = memory.read_at(&mut buffer[..want], at as u64) else { continue };
            let found = search.hits(&buffer[..read]).filter(|(i, _)| !own.contains(&(at + i)));
            hits.extend(found.map(|(i, n)| Hit {
                what: n.what.clone(),
                at: at + i,
                mapping: mapping.clone(),
            }));
            buffer.fill(0);
        }
    }
    hits
}

/// What a core file of the process holds, one for each place. `all`: also of what it keeps out of core files.
pub(crate) fn search_core(process: &str, all: bool, needles: &[Needle]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let core = folder.path().join("core");
    let mut gcore = std::process::Command::new("gcore");
    gcore.args(all.then_some("-a")).arg("-o").arg(&core).arg(process);
    let made = gcore.output().expect("gcore, which is in the package gdb");
    assert!(made.status.success(), "gcore: {}", String::from_utf8_lossy(&made.stderr));
    let file = File::open(format!("{}.{process}", core.display())).expect("the core file");
    let search = Search::of(needles);
    let (mut buffer, mut at, mut found) = (vec![0; PIECE + 15], 0, Vec::new());
    loop {
        let read = file.read_at(&mut buffer, at).expect("the core file");
        found.extend(search.hits(&buffer[..read]).map(|(_, needle)| needle.what.clone()));
        if read < PIECE {
            return found;
        }
        at += PIECE as u64;
    }
}

/// One a line.
pub(crate) fn list<'a>(hits: impl IntoIterator<Item = &'a Hit>) -> String {
    hits.into_iter().map(|hit| format!("{hit}\n")).collect()
}
