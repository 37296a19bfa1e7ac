//! Containers by their uuid: what lies in a folder, and where one went that is not at its place any more.
//!
//! Must never see: keys, vaults. Headers are read beside their owners, never written.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::luks2::Header;
use crate::store::FileStore;
use crate::sync::{Mutex, lock};

use super::access::Access;
use super::{ContainerRecord, SetStore, now};

/// Most files of one folder that are looked at when a container is missing.
const NEAR: usize = 10_000;

/// The LUKS2 binary header: magic, version, and where the uuid is.
const MAGIC: &[u8; 8] = b"LUKS\xba\xbe\x00\x02";
const UUID: std::ops::Range<usize> = 168..208;

/// The uuid that the first header copy claims; `None` for what is no LUKS2 container, or cannot be read. A claim only: the
/// checksum is not looked at.
#[must_use]
pub fn claimed_uuid(path: &Path) -> Option<String> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let mut start = [0; UUID.end];
    File::open(path).ok()?.read_exact_at(&mut start, 0).ok()?;
    if !start.starts_with(MAGIC) {
        return None;
    }
    let text = start[UUID].split(|b| *b == 0).next()?;
    uuid::Uuid::try_parse_ascii(text).ok().map(|uuid| uuid.to_string())
}

/// Finds containers that are not where they were: one that was renamed, or moved beside another one that is known.
#[derive(Debug)]
pub struct Places<'a> {
    sets: &'a SetStore,
    /// What lies in the folders where containers are, by uuid; looked at when the first one is missing.
    near: Mutex<Option<HashMap<String, Vec<PathBuf>>>>,
}

impl<'a> Places<'a> {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(sets: &'a SetStore) -> Self {
        Self { sets, near: Mutex::default() }
    }

    /// Where a container is: at its place, if nothing or something unreadable there does not say otherwise; elsewhere if it
    /// is found near a known one.
    #[must_use]
    pub fn of(&self, container: &ContainerRecord) -> Option<PathBuf> {
        let there = std::fs::symlink_metadata(&container.path);
        let claimed = claimed_uuid(&container.path);
        if claimed.as_ref() == Some(&container.uuid) || (there.is_ok() && claimed.is_none()) {
            return Some(container.path.clone());
        }
        // A copy that is known is not this one.
        let known = self.sets.find(&container.uuid).unwrap_or_default();
        let mut near = lock(&self.near);
        let found = near.get_or_insert_with(|| look_around(self.sets)).get(&container.uuid)?;
        found.iter().find(|path| known.iter().all(|other| other.path != **path)).cloned()
    }
}

fn look_around(sets: &SetStore) -> HashMap<String, Vec<PathBuf>> {
    let all = sets.containers(None).unwrap_or_default();
    let mut folders: Vec<_> = all.iter().filter_map(|c| c.path.parent()).collect();
    folders.sort_unstable();
    folders.dedup();
    let files = folders.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    let files = files.flat_map(|entries| entries.flatten().take(NEAR));
    let files = files.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())).map(|e| e.path());
    let mut found = HashMap::<_, Vec<_>>::new();
    for path in files {
        if let Some(uuid) = claimed_uuid(&path) {
            found.entry(uuid).or_default().push(path);
        }
    }
    found
}

/// One container that a scan met.
#[derive(Debug)]
pub struct Scanned {
    /// As the registry has it now.
    pub container: ContainerRecord,
    /// It was not in the registry.
    pub new: bool,
    /// Where it was before, and is not any more.
    pub moved_from: Vec<PathBuf>,
    /// Where other files with the same uuid are.
    pub copies: Vec<PathBuf>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Containers with a token of ours, by path.
    pub found: Vec<Scanned>,
    /// What looks like a container and cannot be read, and why.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Known below the folder, and not there any more.
    pub missing: Vec<ContainerRecord>,
}

/// Reads the header of every container in a folder and below, on its file system, and brings the registry up to date.
/// Links are not followed.
///
/// # Errors
/// The folder cannot be read; `sets.db` cannot be changed.
pub fn scan(access: &Access, folder: &Path) -> Result<Scan> {
    let folder = folder.canonicalize().io_at("open", folder)?;
    let device = std::fs::metadata(&folder).io_at("open", &folder)?.dev();
    let mut scan = Scan::default();
    let mut folders = vec![folder.clone()];
    while let Some(next) = folders.pop() {
        let entries = match std::fs::read_dir(&next) {
            Ok(entries) => entries,
            Err(e) if next == folder => return Err(crate::error::Error::io("read", e).at(&next)),
            Err(e) => {
                scan.unreadable.push((next, e.to_string()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && meta.dev() == device {
                folders.push(entry.path());
            } else if meta.is_file() && claimed_uuid(&entry.path()).is_some() {
                one(access, &entry.path(), &mut scan)?;
            }
        }
    }
    scan.found.sort_by(|a, b| a.container.path.cmp(&b.container.path));
    let known = access.sets.containers(None)?;
    scan.missing = known.into_iter().filter(|c| c.path.starts_with(&folder) && !c.path.exists()).collect();
    Ok(scan)
}

fn one(access: &Access, path: &Path, scan: &mut Scan) -> Result<()> {
    let header = match FileStore::peek(path).and_then(|store| Header::load(&store)) {
        Ok(header) if header.is_plain() => return Ok(()),
        Ok(header) => header,
        Err(e) => {
            scan.unreadable.push((path.to_owned(), e.chain()));
            return Ok(());
        }
    };
    let before = access.sets.find(header.uuid())?;
    let moved_from = access.record(&header, path, now())?;
    let after = access.sets.find(header.uuid())?;
    let (here, others): (Vec<_>, Vec<_>) = after.into_iter().partition(|c| c.path == path);
    let Some(container) = here.into_iter().next() else { return Ok(()) };
    scan.found.push(Scanned {
        new: before.is_empty(),
        copies: others.into_iter().map(|c| c.path).filter(|other| other.exists()).collect(),
        moved_from,
        container,
    });
    Ok(())
}
