//! Header backup, restore and erase (ON-DISK section 11). A backup is the same file as `cryptsetup luksHeaderBackup`'s.

use std::io::Write;
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
    file.write_all(&area).and_then(|()| file.sync_all()).io_at("write", out)?;
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
    let area = read_backup(file)?;
    let header = check_backup(&area, store).map_err(|e| e.at(file))?;
    let area_len = ByteLen::of(&area);
    match Header::load(store) {
        Ok(present) if !force => {
            let same = present.uuid() == header.uuid()
                && present.segment() == header.segment()
                && present.model.digest == header.model.digest;
            if !same {
                return Err(damaged(
                    "backup",
                    format!("uuid {}", header.uuid()),
                    format!("{} with the same segment and digest", present.uuid()),
                )
                .at(file)
                .hint("to put it here all the same, add --force"));
            }
        }
        Err(e) if e.kind() == ErrorKind::Io => return Err(e),
        _ => {}
    }
    save(store, area_len, save_present_to)?;
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

fn read_backup(file: &Path) -> Result<Vec<u8>> {
    let len = std::fs::metadata(file).io_at("open", file)?.len();
    if len > MAX_AREA {
        return Err(damaged("backup", format!("{len} bytes"), format!("at most {MAX_AREA}")).at(file));
    }
    std::fs::read(file).io_at("read", file)
}

/// The backup must be a header that we would open over this container's data, and exactly its area.
fn check_backup(area: &[u8], store: &dyn BackingStore) -> Result<Header> {
    let whole = MemoryStore::from(area.to_vec());
    // The data area is the container's: a memory store this long would not fit in memory, so only the header is judged.
    let header = Header::load_area(&whole, store.len()?)?;
    if ByteLen::of(area) != header.area_len() {
        return Err(damaged("backup", format!("{} bytes", area.len()), header.area_len()));
    }
    Ok(header)
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
    keyslot::overwrite(store, area)?;
    let digest = header.model.digest.name.clone();
    header.change(|json| {
        for name in ["keyslots", "tokens"] {
            json[name] = serde_json::json!({});
        }
        json["digests"][&digest]["keyslots"] = serde_json::json!([]);
    })?;
    match header.commit(store)? {
        super::Committed::Both => Ok(()),
        super::Committed::SecondaryStale(e) => Err(e),
    }
}
