//! A backup of the whole vault under a passphrase, and its way back: `vault.db` as of one moment, the root key, and what
//! else the caller wants beside them.
//!
//! In the sealed stream: length u32be and JSON (vault, name, generation, time, files with their lengths), the root key's 32
//! bytes, the files. `vault.db` is a snapshot by `VACUUM INTO`: consistent while others write, and without the free pages in
//! which purged keys might linger.
//!
//! Must never see: what is in `vault.db`.
//!
//! Invariants:
//! 1. A backup file appears whole or not at all, and never in the place of another.
//! 2. A restore overwrites nothing. `vault.db` appears, as when it is made, when everything else is on the medium.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use uuid::Uuid;

use super::identities::PATCH;
use super::passphrase::Cost;
use super::refusal::{Fail, transient};
use super::root_file::write_whole;
use super::seal::RootKey;
use super::whole_file::{Opener, Sealer, trouble};
use super::{Facts, LocalVault, db, root_change};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::{Secret, SecretBytes};
use crate::vault::Call;

/// The most that the description at the beginning may take.
const LONGEST_MANIFEST: u32 = 64 << 10;
/// Longest name of a file beside the vault.
const LONGEST_NAME: usize = 64;

/// What to put into a backup, and how it is sealed.
#[derive(Debug)]
pub struct WholeBackup<'a> {
    /// It opens the backup.
    pub passphrase: &'a SecretBytes,
    /// Of stretching it.
    pub cost: Cost,
    /// Files beside the vault: their names when they are restored, and where they are now.
    pub beside: &'a [(&'a str, PathBuf)],
}

/// What a restore brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The vault's id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// When the backup was made, unix seconds.
    pub made: i64,
    /// The files.
    pub files: Vec<String>,
}

impl LocalVault {
    /// Writes a backup of the whole vault into a new file; `progress` is told bytes done and in all.
    ///
    /// # Errors
    /// Refused: 403. Broken: `Exists` and other trouble with the file.
    pub fn backup_whole(
        &self,
        file: &Path,
        what: &WholeBackup<'_>,
        progress: &mut dyn FnMut(u64, u64),
        call: &Call,
    ) -> std::result::Result<(), Fail> {
        if file.try_exists().io_at("look for", file)? {
            return Err(exists(file));
        }
        // On record before it can be carried away, and so in the snapshot as well.
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            work.change = Some("a backup of the whole vault was made".into());
            Ok(())
        })?;
        let scratch = tempfile::Builder::new()
            .prefix(".backup-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(&self.dir)
            .io_at("make a folder", &self.dir)?;
        let snapshot = scratch.path().join(db::DATABASE);
        {
            let db = self.current().map_err(Fail::Broken)?;
            db.conn.execute("VACUUM INTO ?1", [snapshot.to_string_lossy()])?;
        }
        let conn = Connection::open_with_flags(&snapshot, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let (root, facts) = root_change::current(&self.dir, &self.unlock, &conn)
            .map_err(|e| Fail::Broken(transient(format!("{} (rotated meanwhile? try again)", e.chain()))))?;
        drop(conn);
        let mut files = vec![(db::DATABASE.to_owned(), snapshot)];
        files.extend(what.beside.iter().map(|(name, path)| ((*name).to_owned(), path.clone())));
        Ok(write_backup(file, &root, &facts, what, &files, progress)?)
    }

    /// Brings a vault back into a folder that has none.
    ///
    /// # Errors
    /// `Exists`; `WrongKey`, `Damaged`, `InvalidInput` (no backup); the folder cannot be written.
    pub fn restore_whole(
        dir: &Path,
        file: &Path,
        passphrase: &SecretBytes,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Restored> {
        let source = File::open(file).io_at("open the backup", file)?;
        let total = source.metadata().io_at("look at the backup", file)?.len();
        let counted = Counted { from: source, done: 0, total, progress };
        let mut source = Opener::new(counted, passphrase.expose()).map_err(|e| e.at(file))?;
        let (restored, root, files) = read_manifest(&mut source).map_err(|e| e.at(file))?;
        let fresh = db::Fresh::begin(dir)?;
        for (name, _) in files.iter().skip(1) {
            let path = dir.join(name);
            if path.try_exists().io_at("look for", &path)? {
                fresh.abandon();
                return Err(Error::new(ErrorKind::Exists, "a restore overwrites nothing").at(&path));
            }
        }
        let mut beside = Vec::new();
        let filled = fill(dir, &fresh, &mut source, &restored, &root, &files, &mut beside);
        if let Err(e) = filled.and_then(|()| fresh.finish()) {
            beside.iter().for_each(|path| drop(std::fs::remove_file(path)));
            fresh.abandon();
            return Err(if e.kind() == ErrorKind::Damaged { e.at(file) } else { e });
        }
        let vault = Self::open(dir)?;
        let call = vault.admin("vault restore");
        vault.audited(PATCH, &call, |work| {
            work.change = Some(format!("the vault was restored from a backup of {}", restored.made));
            work.allowed = true;
            Ok(work.bump_generation()?)
        })?;
        Ok(restored)
    }
}

fn exists(file: &Path) -> Fail {
    let message = format!("{}: a backup never takes the place of another file", file.display());
    Fail::Broken(crate::vault::VaultError::Rejected { code: "Conflict", message })
}

fn write_backup(
    file: &Path,
    root: &RootKey,
    facts: &Facts,
    what: &WholeBackup<'_>,
    files: &[(String, PathBuf)],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let io = |e| Error::io("write the backup", e).at(file);
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = tempfile::NamedTempFile::new_in(folder).map_err(io)?; // 0600
    let mut opened = Vec::new();
    for (name, path) in files {
        let source = File::open(path).io_at("open", path)?;
        let len = source.metadata().io_at("look at", path)?.len();
        opened.push((name, path, source, len));
    }
    let total = opened.iter().map(|(.., len)| len).sum();
    let list: Vec<_> = opened.iter().map(|(name, .., len)| json!({ "name": name, "len": len })).collect();
    let manifest = json!({ "format": 1, "vault": facts.id.to_string(), "name": facts.name,
        "generation": facts.generation, "made": super::now(), "files": list })
    .to_string();
    let out = std::io::BufWriter::new(new.as_file());
    let mut sealer = Sealer::new(out, what.passphrase.expose(), what.cost)?;
    let len =
        u32::try_from(manifest.len()).map_err(|e| Error::new(ErrorKind::Other, "manifest").caused_by(e))?;
    sealer.write_all(&len.to_be_bytes()).map_err(io)?;
    sealer.write_all(manifest.as_bytes()).map_err(io)?;
    sealer.write_all(root.expose()).map_err(io)?;
    let (mut done, mut buffer) = (0, vec![0; 64 << 10]);
    for (_, path, source, len) in opened {
        let mut left = source.take(len);
        loop {
            let n = left.read(&mut buffer).io_at("read", path)?;
            if n == 0 {
                break;
            }
            sealer.write_all(&buffer[..n]).map_err(io)?;
            done += n as u64;
            progress(done, total);
        }
        if left.limit() > 0 {
            return Err(Error::new(ErrorKind::Conflict, "it became shorter while it was read").at(path));
        }
    }
    drop(sealer.finish().map_err(io)?);
    new.as_file().sync_all().map_err(io)?;
    new.persist_noclobber(file).map_err(|e| Error::io("name the backup", e.error).at(file))?;
    File::open(folder).and_then(|f| f.sync_all()).io_at("sync folder", folder)
}

type Files = Vec<(String, u64)>;

fn read_manifest(source: &mut impl Read) -> Result<(Restored, RootKey, Files)> {
    let damaged = || Error::new(ErrorKind::Damaged, "the backup's description makes no sense");
    let mut len = [0; 4];
    source.read_exact(&mut len).map_err(trouble)?;
    let len = u32::from_be_bytes(len);
    if len > LONGEST_MANIFEST {
        return Err(damaged());
    }
    let mut text = vec![0; len as usize];
    source.read_exact(&mut text).map_err(trouble)?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| damaged().caused_by(e))?;
    if value["format"] != 1 {
        return Err(Error::new(ErrorKind::Unsupported, "the backup: found another format, allowed 1")
            .hint("a newer wrapdisk made it: use that one"));
    }
    let list = value["files"].as_array().ok_or_else(damaged)?;
    let files = list
        .iter()
        .map(|file| Some((file["name"].as_str()?.to_owned(), file["len"].as_u64()?)))
        .collect::<Option<Files>>()
        .filter(|files| files.first().is_some_and(|(name, _)| name == db::DATABASE))
        .filter(|files| files.iter().all(|(name, _)| is_plain(name)))
        .ok_or_else(damaged)?;
    let restored = (|| {
        Some(Restored {
            id: Uuid::parse_str(value["vault"].as_str()?).ok()?,
            name: value["name"].as_str()?.to_owned(),
            made: value["made"].as_i64()?,
            files: files.iter().map(|(name, _)| name.clone()).collect(),
        })
    })()
    .ok_or_else(damaged)?;
    let mut root = Secret::<32>::try_from_fn(|out| source.read_exact(out).map_err(trouble))?;
    let root = RootKey::take(root.expose_mut())?.ok_or_else(damaged)?;
    Ok((restored, root, files))
}

/// A name in this folder, and none of SQLite's own.
fn is_plain(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.')
        && !name.starts_with('.')
        && name != super::seal::ROOT_KEY
}

fn fill(
    dir: &Path,
    fresh: &db::Fresh,
    source: &mut impl Read,
    restored: &Restored,
    root: &RootKey,
    files: &Files,
    beside: &mut Vec<PathBuf>,
) -> Result<()> {
    write_whole(&fresh.root, root.expose())?;
    for (name, len) in files {
        let path = if name == db::DATABASE {
            fresh.unfinished.clone()
        } else {
            beside.push(dir.join(name));
            dir.join(name)
        };
        let mut options = File::options();
        options.write(true).mode(0o600);
        let options = if name == db::DATABASE { &mut options } else { options.create_new(true) };
        let mut out = options.open(&path).io_at("make", &path)?;
        copy(source, *len, &mut out, &path)?;
        out.sync_all().io_at("sync", &path)?;
    }
    if source.read(&mut [0; 1]).map_err(trouble)? > 0 {
        return Err(Error::new(ErrorKind::Damaged, "the backup holds more than it says"));
    }
    let conn = Connection::open_with_flags(&fresh.unfinished, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|e| db::sql(&e))?;
    let sound: String =
        conn.query_row("PRAGMA quick_check", [], |row| row.get(0)).map_err(|e| db::sql(&e))?;
    let (facts, check) = Facts::load(&conn).map_err(|e| db::sql(&e))?;
    let fits = root.unseal(facts.check_place(), facts.generation, &check).is_ok();
    if sound != "ok" || facts.id != restored.id || !fits {
        return Err(Error::new(ErrorKind::Damaged, "the backup's vault.db is not whole"));
    }
    conn.close().map_err(|(_, e)| db::sql(&e))
}

fn copy(source: &mut impl Read, len: u64, out: &mut File, path: &Path) -> Result<()> {
    let (mut left, mut buffer) = (len, vec![0; 64 << 10]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let n = source.read(&mut buffer[..most]).map_err(trouble)?;
        if n == 0 {
            return Err(trouble(std::io::ErrorKind::UnexpectedEof.into()));
        }
        out.write_all(&buffer[..n]).io_at("write", path)?;
        left -= n as u64;
    }
    Ok(())
}

/// Tells how far a file was read.
struct Counted<'a> {
    from: File,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(out)?;
        self.done += n as u64;
        (self.progress)(self.done, self.total);
        Ok(n)
    }
}
