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
use crate::units::{ByteOffset, MAX_BYTES};

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

impl Copy {
    fn area(&self) -> &[u8] {
        &self.bytes[BINARY_SIZE..]
    }
}

/// The copy to believe.
pub(super) struct Chosen {
    pub(super) binary: Binary,
    which: Which,
    area: Vec<u8>,
    pub(super) warnings: Vec<String>,
    /// The other copy is bad, older, or differs.
    pub(super) stale: bool,
}

impl Chosen {
    /// The JSON of this copy; a refusal here never falls back to the other one, which would be a downgrade.
    pub(super) fn interpret(&self) -> Result<(Map<String, Value>, Model)> {
        let json = json::parse(&self.area)?;
        let model = Model::parse(&json, self.binary.hdr_size)?;
        Ok((json, model))
    }

    /// Rewrites the losing copy from this one as it is, byte for byte: same sequence number, fresh salt.
    fn repair_other(&self, store: &dyn BackingStore) -> Result<()> {
        let text = self.area.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        let loser = self.which.other();
        let bytes = self.binary.build(loser, &self.area[..text])?;
        // Whoever wrote the winner may have been killed before its sync: it must be durable before the other one is torn.
        store.sync()?;
        store.write_at(offset(loser.place(self.binary.hdr_size)), &bytes)?;
        store.sync()
    }
}

fn offset(n: u64) -> ByteOffset {
    ByteOffset::new(n).expect("header offsets are small")
}

fn whole(bytes: &[u8]) -> &[u8; BINARY_SIZE] {
    bytes.first_chunk().expect("a copy begins with its binary header")
}

/// Reads the copy at `place`.
fn read_copy(store: &dyn BackingStore, which: Which, place: u64) -> Result<Copy> {
    let len = store.len()?.get();
    let too_short = |needed: u64| damaged("file", format!("{len} bytes"), format!("at least {needed}"));
    let mut bytes = vec![0; BINARY_SIZE];
    if len < place + BINARY_SIZE as u64 {
        return Err(too_short(place + BINARY_SIZE as u64));
    }
    store.read_at(offset(place), &mut bytes)?;
    let size = Binary::parse(whole(&bytes), which, place)?.hdr_size;
    if len < place + size {
        return Err(too_short(place + size));
    }
    bytes.resize(usize::try_from(size).expect("at most 128 KiB"), 0);
    store.read_at(offset(place), &mut bytes)?;
    binary::check_sum(&bytes)?;
    // Parsed once more: somebody who writes at this moment must not get fields past the checksum.
    let binary = Binary::parse(whole(&bytes), which, place)?;
    if binary.hdr_size != size {
        return Err(damaged("hdr_size", binary.hdr_size, format!("{size}, as a moment ago")));
    }
    Ok(Copy { binary, bytes })
}

/// Where the primary says; without one, at every place where a secondary may be.
fn read_secondary(store: &dyn BackingStore, primary: Option<&Copy>) -> Result<Copy> {
    if let Some(primary) = primary {
        return read_copy(store, Which::Secondary, primary.binary.hdr_size);
    }
    let mut refusal = None;
    for place in SIZES {
        if starts_with(store, place, Which::Secondary.magic())? {
            match passing_io(read_copy(store, Which::Secondary, place))? {
                Ok(copy) => return Ok(copy),
                Err(e) => refusal = refusal.or(Some(e)),
            }
        }
    }
    Err(refusal
        .unwrap_or_else(|| damaged("secondary header", "nothing", "a copy at 16384, 32768, 65536 or 131072")))
}

fn starts_with(store: &dyn BackingStore, place: u64, magic: &[u8; 6]) -> Result<bool> {
    let mut found = [0; 6];
    if store.len()?.get() < place + found.len() as u64 {
        return Ok(false);
    }
    store.read_at(offset(place), &mut found)?;
    Ok(found == *magic)
}

/// Reads both copies and chooses: the higher sequence number, the primary on a tie.
pub(super) fn choose(store: &dyn BackingStore) -> Result<Chosen> {
    refuse_luks1(store)?;
    let primary = passing_io(read_copy(store, Which::Primary, 0))?;
    let secondary = passing_io(read_secondary(store, primary.as_ref().ok()))?;
    let (which, copy, warning) = match (primary, secondary) {
        (Ok(p), Ok(s)) if s.binary.seqid > p.binary.seqid => {
            let warning = format!(
                "the primary header is older (seqid {}) than the secondary ({})",
                p.binary.seqid, s.binary.seqid
            );
            (Which::Secondary, s, Some(warning))
        }
        (Ok(p), Ok(s)) => {
            let warning = difference(&p, &s);
            (Which::Primary, p, warning)
        }
        (Ok(p), Err(e)) => (Which::Primary, p, Some(format!("the secondary header is bad: {e}"))),
        (Err(e), Ok(s)) => (Which::Secondary, s, Some(format!("the primary header is bad: {e}"))),
        (Err(p), Err(s)) => return Err(no_copy(store, p, &s)?),
    };
    Ok(Chosen {
        area: copy.area().to_vec(),
        binary: copy.binary,
        which,
        stale: warning.is_some(),
        warnings: warning.into_iter().collect(),
    })
}

fn difference(p: &Copy, s: &Copy) -> Option<String> {
    if s.binary.seqid < p.binary.seqid {
        return Some(format!(
            "the secondary header is older (seqid {}) than the primary ({})",
            s.binary.seqid, p.binary.seqid
        ));
    }
    let same = p.binary == s.binary && p.area() == s.area();
    (!same).then(|| format!("the header copies differ although both have seqid {}", p.binary.seqid))
}

/// A verdict about a copy is kept for the choice; a store that cannot be read gives none.
fn passing_io(copy: Result<Copy>) -> Result<Result<Copy>> {
    match copy {
        Err(e) if !matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => Err(e),
        verdict => Ok(verdict),
    }
}

/// Neither copy is good: is it a container at all, and one of ours?
fn no_copy(store: &dyn BackingStore, primary: Error, secondary: &Error) -> Result<Error> {
    if primary.kind() == ErrorKind::Unsupported {
        return Ok(primary);
    }
    let mut found = starts_with(store, 0, Which::Primary.magic())?;
    for place in SIZES {
        found |= starts_with(store, place, Which::Secondary.magic())?;
    }
    Ok(if found {
        Error::new(ErrorKind::Damaged, format!("both header copies are bad: {primary}; {secondary}"))
            .hint("put a backup back with: wrapdisk header restore FILE BACKUP")
    } else {
        Error::new(ErrorKind::Damaged, "not a LUKS2 container: no valid header copy was found")
            .hint("check the name; make a disk with: wrapdisk create FILE --size SIZE")
    })
}

/// Whatever lies at the secondary's place: LUKS1 has its keys there.
fn refuse_luks1(store: &dyn BackingStore) -> Result<()> {
    let mut start = [0; 8];
    if store.len()?.get() >= start.len() as u64 {
        store.read_at(ByteOffset::ZERO, &mut start)?;
    }
    if start[..6] == *Which::Primary.magic() && start[6..] == 1u16.to_be_bytes() {
        return Err(unsupported("version", 1, 2).hint("convert it with: cryptsetup convert --type luks2"));
    }
    Ok(())
}

/// The first header of a new container. Of an older one on the same device, nothing may be found again: its copies could
/// have higher sequence numbers, or lie where no copy of this one will.
pub(super) fn write_first(store: &dyn BackingStore, binary: &mut Binary, text: &str) -> Result<()> {
    for place in SIZES {
        if starts_with(store, place, Which::Secondary.magic())? {
            store.write_at(offset(place), &[0; BINARY_SIZE])?;
        }
    }
    store.sync()?;
    binary.seqid = 1;
    match write_both(store, binary, text)? {
        Committed::Both => Ok(()),
        Committed::SecondaryStale(e) => Err(e),
    }
}

/// Steps 1 to 6 of section 7; the caller holds the lock.
///
/// The secondary must be whole and durable before the primary is torn, so a stale one is repaired first, and the sync
/// makes sure of what a killed process may have left in the page cache.
pub(super) fn commit(store: &dyn BackingStore, binary: &mut Binary, text: &str) -> Result<Committed> {
    let present = choose(store)?;
    if present.binary.seqid != binary.seqid || present.binary.uuid != binary.uuid {
        let (found, allowed) = (present.binary.seqid, binary.seqid);
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("seqid: found {found}, allowed {allowed}: changed by another program"),
        )
        .hint("run the command again"));
    }
    if binary.seqid == MAX_BYTES {
        return Err(unsupported("seqid", binary.seqid, "one that can be counted up: this header is final"));
    }
    let next = Binary { seqid: binary.seqid + 1, ..binary.clone() };
    next.check_fits(text.len())?;
    if present.stale && present.which == Which::Primary {
        present.repair_other(store)?;
    } else {
        store.sync()?;
    }
    let done = write_both(store, &next, text)?;
    *binary = next;
    Ok(done)
}

fn write_both(store: &dyn BackingStore, binary: &Binary, text: &str) -> Result<Committed> {
    let primary = binary.build(Which::Primary, text.as_bytes())?;
    let secondary = binary.build(Which::Secondary, text.as_bytes())?;
    let unknown = |e: Error| Error::new(e.kind(), "write the header: the outcome is unknown").caused_by(e);
    store.write_at(ByteOffset::ZERO, &primary).map_err(unknown)?;
    store.sync().map_err(unknown)?;
    let written = store.write_at(offset(binary.hdr_size), &secondary).and_then(|()| store.sync());
    Ok(written.map_or_else(Committed::SecondaryStale, |()| Committed::Both))
}

/// Rewrites the losing copy from the winner, if there is a loser.
pub(super) fn repair(store: &dyn BackingStore) -> Result<()> {
    let chosen = choose(store)?;
    if chosen.stale { chosen.repair_other(store) } else { Ok(()) }
}
