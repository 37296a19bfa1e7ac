//! The two copies of a header: choosing one, committing both (ON-DISK section 7).
//!
//! At every crash point of a commit a reader finds the old header or the new one: the primary is written and synced before
//! the secondary is touched, and each copy carries its own checksum and sequence number.

use serde_json::{Map, Value};

use super::binary::{self, BINARY_SIZE, Binary, SIZES, Which};
use super::json;
use super::model::Model;
use super::refuse::{damaged, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::store::BackingStore;
use crate::units::ByteOffset;

/// How a commit ended, when it ended well.
#[derive(Debug)]
pub enum Committed {
    /// Both copies are new and durable.
    Both,
    /// The new header is durable; its second copy is stale, for this reason. The next writable open repairs it.
    SecondaryStale(Error),
}

/// A copy whose binary header and checksum are good.
struct Copy {
    binary: Binary,
    bytes: Vec<u8>,
}

/// The copy to believe.
pub(super) struct Chosen {
    pub(super) binary: Binary,
    json: Vec<u8>,
    pub(super) warnings: Vec<String>,
    /// The other copy is bad, older, or differs.
    pub(super) stale: bool,
}

impl Chosen {
    /// The JSON of this copy; a refusal here never falls back to the other one, which would be a downgrade.
    pub(super) fn interpret(&self) -> Result<(Map<String, Value>, Model)> {
        let json = json::parse(&self.json)?;
        let model = Model::parse(&json, self.binary.hdr_size)?;
        Ok((json, model))
    }
}

fn offset(n: u64) -> ByteOffset {
    ByteOffset::new(n).expect("header offsets are small")
}

/// Reads the copy at `place`.
fn read_copy(store: &dyn BackingStore, which: Which, place: u64) -> Result<Copy> {
    let len = store.len()?.get();
    if len < place + BINARY_SIZE as u64 {
        return Err(damaged("file", format!("{len} bytes"), "a LUKS2 header"));
    }
    let mut start = [0; BINARY_SIZE];
    store.read_at(offset(place), &mut start)?;
    let binary = Binary::parse(&start, which, place)?;
    if len < place + binary.hdr_size {
        return Err(damaged(
            "file",
            format!("{len} bytes"),
            format!("at least {}: shorter than its header", place + binary.hdr_size),
        ));
    }
    let mut bytes = vec![0; usize::try_from(binary.hdr_size).expect("at most 128 KiB")];
    store.read_at(offset(place), &mut bytes)?;
    binary::check_sum(&bytes)?;
    Ok(Copy { binary, bytes })
}

fn read_secondary(store: &dyn BackingStore, primary: Option<&Copy>) -> Result<Copy> {
    if let Some(primary) = primary {
        return read_copy(store, Which::Secondary, primary.binary.hdr_size);
    }
    let mut last = damaged("secondary header", "nothing", "a copy at 16384, 32768, 65536 or 131072");
    for place in SIZES {
        match read_copy(store, Which::Secondary, place) {
            Ok(copy) => return Ok(copy),
            Err(e) if e.kind() == ErrorKind::Io => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Reads both copies and chooses: the higher sequence number, the primary on a tie.
pub(super) fn choose(store: &dyn BackingStore) -> Result<Chosen> {
    refuse_others(store)?;
    let primary = passing_io(read_copy(store, Which::Primary, 0))?;
    let secondary = passing_io(read_secondary(store, primary.as_ref().ok()))?;
    let (copy, warnings) = match (primary, secondary) {
        (Ok(p), Ok(s)) if s.binary.seqid > p.binary.seqid => {
            let warning = format!(
                "the primary header is older (seqid {}) than the secondary ({})",
                p.binary.seqid, s.binary.seqid
            );
            (s, vec![warning])
        }
        (Ok(p), Ok(s)) => {
            let warning = difference(&p, &s);
            (p, warning.into_iter().collect())
        }
        (Ok(p), Err(e)) => (p, vec![format!("the secondary header is bad: {e}")]),
        (Err(e), Ok(s)) => (s, vec![format!("the primary header is bad: {e}")]),
        (Err(p), Err(s)) => {
            return Err(Error::new(ErrorKind::Damaged, format!("both header copies are bad: {p}; {s}"))
                .hint("put a backup back with: wrapdisk header restore FILE BACKUP"));
        }
    };
    let stale = !warnings.is_empty();
    Ok(Chosen { json: copy.bytes[BINARY_SIZE..].to_vec(), binary: copy.binary, warnings, stale })
}

fn difference(p: &Copy, s: &Copy) -> Option<String> {
    if s.binary.seqid < p.binary.seqid {
        return Some(format!(
            "the secondary header is older (seqid {}) than the primary ({})",
            s.binary.seqid, p.binary.seqid
        ));
    }
    let same = p.binary == s.binary && p.bytes[BINARY_SIZE..] == s.bytes[BINARY_SIZE..];
    (!same).then(|| format!("the header copies differ although both have seqid {}", p.binary.seqid))
}

/// An I/O error is no verdict about a copy.
fn passing_io(copy: Result<Copy>) -> Result<Result<Copy>> {
    match copy {
        Err(e) if e.kind() == ErrorKind::Io => Err(e),
        other => Ok(other),
    }
}

/// Files that are no LUKS2 container at all get a plain answer.
fn refuse_others(store: &dyn BackingStore) -> Result<()> {
    let mut start = [0; 8];
    if store.len()?.get() >= 8 {
        store.read_at(ByteOffset::ZERO, &mut start)?;
    }
    match binary::version(&start) {
        Some(1) => Err(unsupported("version", 1, 2).hint("convert it with: cryptsetup convert --type luks2")),
        Some(_) => Ok(()),
        // The primary may be torn; then a secondary is to be found.
        None => match read_secondary(store, None) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Io => Err(e),
            Err(_) => {
                Err(Error::new(ErrorKind::Damaged, "not a LUKS2 container: no valid header copy was found")
                    .hint("check the name; make a disk with: wrapdisk create FILE --size SIZE"))
            }
        },
    }
}

/// The first header of a new container. Nothing is there to be kept.
pub(super) fn write_first(store: &dyn BackingStore, binary: &mut Binary, text: &str) -> Result<()> {
    binary.seqid = 1;
    write_both(store, binary, text).and_then(|done| match done {
        Committed::Both => Ok(()),
        Committed::SecondaryStale(e) => Err(e),
    })
}

/// Steps 1 to 6 of section 7; the caller holds the lock.
pub(super) fn commit(store: &dyn BackingStore, binary: &mut Binary, text: &str) -> Result<Committed> {
    let present = choose(store)?.binary;
    if present.seqid != binary.seqid || present.uuid != binary.uuid {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("seqid: found {}, allowed {}: changed by another program", present.seqid, binary.seqid),
        )
        .hint("run the command again"));
    }
    let mut next = binary.clone();
    next.seqid += 1;
    let done = write_both(store, &next, text)?;
    *binary = next;
    Ok(done)
}

fn write_both(store: &dyn BackingStore, binary: &Binary, text: &str) -> Result<Committed> {
    let primary = binary.build(Which::Primary, text)?;
    let secondary = binary.build(Which::Secondary, text)?;
    let unknown = |e: Error| Error::new(e.kind(), "write the header: the outcome is unknown").caused_by(e);
    store.write_at(ByteOffset::ZERO, &primary).map_err(unknown)?;
    store.sync().map_err(unknown)?;
    let written = store.write_at(offset(binary.hdr_size), &secondary).and_then(|()| store.sync());
    Ok(written.map_or_else(Committed::SecondaryStale, |()| Committed::Both))
}

/// Rewrites the losing copy from the winner: same sequence number, fresh salt.
pub(super) fn repair(store: &dyn BackingStore, binary: &Binary, text: &str) -> Result<()> {
    let good = |which, place| {
        read_copy(store, which, place)
            .is_ok_and(|c| c.binary == *binary && c.bytes[BINARY_SIZE..].starts_with(text.as_bytes()))
    };
    // The winner is whole and synced; only the other one is written, so a crash here loses nothing.
    if !good(Which::Secondary, binary.hdr_size) {
        store.write_at(offset(binary.hdr_size), &binary.build(Which::Secondary, text)?)?;
    }
    if !good(Which::Primary, 0) {
        store.write_at(ByteOffset::ZERO, &binary.build(Which::Primary, text)?)?;
    }
    store.sync()
}
