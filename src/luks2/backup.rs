//! Header backup, restore and erase (ON-DISK section 11). A backup is the same file as `cryptsetup luksHeaderBackup`'s.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::header::Header;
use super::keyslot;
use super::refuse::damaged;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::store::{BackingStore, MemoryStore};
use crate::units::{ByteLen, ByteOffset, Extent};

/// Largest header area: two copies of 128 KiB and 128 MiB of keyslots.
const MAX_AREA: u64 = (128 << 20) + (256 << 10);

/// Copies the header area to a new file, mode 0400, durable when this returns.
///
/// # Errors
/// `Exists`, `NoSpace`, `Damaged` when the container's header is bad.
pub fn backup(store: &dyn BackingStore, out: &Path) -> Result<()> {
    let header = Header::load(store)?;
    save(store, header.area_len(), out)
}

fn save(store: &dyn BackingStore, len: ByteLen, out: &Path) -> Result<()> {
    let area = read(store, len)?;
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o400).open(out).io_at("create", out)?;
    let written = file.write_all(&area).and_then(|()| file.sync_all()).io_at("write", out);
    if written.is_err() {
        // Half a backup is none, and would be in the way of the next one.
        let _ = std::fs::remove_file(out);
    }
    written?;
    crate::store::sync_parent_dir(out)
}

fn read(store: &dyn BackingStore, len: ByteLen) -> Result<Vec<u8>> {
    let mut area =
        vec![0; len.to_usize().ok_or_else(|| Error::new(ErrorKind::NoSpace, "header area too large"))?];
    store.read_at(ByteOffset::ZERO, &mut area)?;
    Ok(area)
}

/// Puts a backup back. The present area is saved first; `force` allows a backup of another container.
///
/// The secondary's start is zeroed first: otherwise a crash could leave a newer secondary that wins over the restored
/// primary.
///
/// # Errors
/// `Damaged` for a bad or foreign backup, `Exists` when the present area was saved there before.
pub fn restore(store: &dyn BackingStore, file: &Path, force: bool, save_present_to: &Path) -> Result<()> {
    let (area, header) = read_backup(file, store).map_err(|e| e.at(file))?;
    let present = match Header::load(store) {
        Ok(present) => Some(present),
        // What a restore is for.
        Err(e) if e.kind() == ErrorKind::Damaged => None,
        // A header that another program understands is not to be lost by mistake.
        Err(e) if e.kind() == ErrorKind::Unsupported && force => None,
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            return Err(e.hint("to replace this header all the same, add --force"));
        }
        Err(e) => return Err(e),
    };
    if let Some(present) = &present {
        if !force {
            check_same(present, &header).map_err(|e| e.at(file))?;
        }
        // The zeroed secondary must not be the better copy.
        present.repair_copies(store)?;
    }
    // All that will be overwritten, and at least a whole backup of what is there.
    let saved = present.map_or(ByteLen::ZERO, |p| p.area_len()).max(ByteLen::of(&area));
    save(store, saved, save_present_to).map_err(|e| match e.kind() {
        ErrorKind::Exists => e.hint("an earlier restore saved it: move it away first"),
        _ => e,
    })?;
    let hdr_size = usize::try_from(header.binary.hdr_size).expect("at most 128 KiB");
    let at = |n: usize| ByteOffset::new(n as u64).expect("within the header area");
    store.write_at(at(hdr_size), &[0; 4096])?;
    store.sync()?;
    store.write_at(at(2 * hdr_size), &area[2 * hdr_size..])?;
    store.sync()?;
    store.write_at(at(0), &area[..hdr_size])?;
    store.sync()?;
    store.write_at(at(hdr_size), &area[hdr_size..2 * hdr_size])?;
    store.sync()
}

fn check_same(present: &Header, backup: &Header) -> Result<()> {
    let same = present.uuid() == backup.uuid()
        && present.segment() == backup.segment()
        && present.model.digest == backup.model.digest;
    if same {
        return Ok(());
    }
    let allowed = format!("{} with the same segment and digest", present.uuid());
    Err(damaged("backup", format!("uuid {}", backup.uuid()), allowed)
        .hint("to put it here all the same, add --force"))
}

/// The bytes of a backup: a header that we would open over this container's data, and exactly its area.
fn read_backup(file: &Path, store: &dyn BackingStore) -> Result<(Vec<u8>, Header)> {
    let mut area = Vec::new();
    // Whatever the file is: a device or a pipe has no length to be checked first.
    let input = std::fs::File::open(file).io_at("open", file)?;
    input.take(MAX_AREA + 1).read_to_end(&mut area).io_at("read", file)?;
    if area.len() as u64 > MAX_AREA {
        return Err(damaged("backup", format!("more than {MAX_AREA} bytes"), format!("at most {MAX_AREA}")));
    }
    let whole = MemoryStore::from(area);
    // The data area is the container's: a memory store this long would not fit in memory, so only the header is judged.
    let header = Header::load_area(&whole, store.len()?)
        .map_err(|e| e.hint("this is the backup; the container was left as it is"))?;
    let len = whole.len()?;
    if len != header.area_len() {
        return Err(damaged("backup", format!("{len} bytes"), header.area_len()));
    }
    // If its copies differed when it was made, the better one is put back twice.
    header.repair_copies(&whole)?;
    Ok((whole.snapshot(), header))
}

/// Destroys every way in: keyslots area overwritten, no keyslots and no tokens in both copies.
///
/// # Errors
/// `Io`, `NoSpace`, `Conflict`.
pub fn erase(store: &dyn BackingStore) -> Result<()> {
    let mut header = Header::load(store)?;
    let start = header.keyslots_start();
    let len = header.area_len().get() - start.get();
    let area = Extent::new(start, ByteLen::new(len).expect("at most 128 MiB")).expect("small");
    let digest = header.model.digest.name.clone();
    header.change(|json| {
        for name in ["keyslots", "tokens"] {
            json[name] = serde_json::json!({});
        }
        json["digests"][&digest]["keyslots"] = serde_json::json!([]);
    })?;
    keyslot::overwrite(store, area)?;
    match header.commit(store)? {
        super::Committed::Both => Ok(()),
        super::Committed::SecondaryStale(e) => Err(e),
    }
}
