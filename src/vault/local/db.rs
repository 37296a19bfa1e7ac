//! The vault's files: making them, opening them, and the settings every connection has (KEY-VAULT section 2).
//!
//! Must never see: RSA, permissions, the content of a key.
//!
//! Invariants:
//! 1. `vault.db` exists only complete: it is made as `vault.db.new` and renamed when it and `root.key` are on the medium.
//! 2. A `root.key` is never overwritten or removed, unless `vault.db.new` shows that no vault ever stood on it.
//! 3. Every connection has WAL, `synchronous=FULL`, foreign keys, `secure_delete` and a busy timeout of 5 s
//!    (operations wait for the medium in their own way: `durable`).

use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::refusal::from_sqlite;
use super::root_file::write_whole;
use super::seal::{ROOT_KEY, RootKey};
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// The database's file.
pub(super) const DATABASE: &str = "vault.db";
const UNFINISHED: &str = "vault.db.new";

/// "wdKV": tells `file` and us what this SQLite file is.
const APPLICATION_ID: i32 = 0x7764_4b56;

/// Schema n is made by the first n of these; never edit one that was released.
const MIGRATIONS: &[&str] =
    &[include_str!("schema.sql"), include_str!("schema-2.sql"), include_str!("schema-3.sql")];

/// No file has this device and inode.
const NO_FILE: (u64, u64) = (0, 0);

/// A connection, and which file it is a connection to.
#[derive(Debug)]
pub(super) struct Db {
    pub(super) conn: Connection,
    file: (u64, u64),
}

impl Db {
    /// Opens an existing database.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` (others can reach it), `Unsupported` (newer schema), `Damaged` (not a vault),
    /// `Unreachable` (busy, I/O).
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(DATABASE);
        let meta = std::fs::metadata(&path).map_err(|e| {
            Error::io("open the vault", e).at(&path).hint(
                "restore it from your backup; where there was none, the first `wrapdisk create` makes one",
            )
        })?;
        check_private(&meta, &path)?;
        let mut conn = connect(&path)?;
        check_kind(&conn).map_err(|e| e.at(&path))?;
        migrate(&mut conn).map_err(|e| e.at(&path))?;
        Ok(Self { conn, file: (meta.dev(), meta.ino()) })
    }

    /// Whether the path still leads to the file this connection has open. SQLite would not notice a removed or replaced
    /// file, and a mount would go on with yesterday's answers.
    ///
    /// # Errors
    /// The file is missing or cannot be looked at.
    pub(super) fn is_current(&self, dir: &Path) -> Result<bool> {
        let path = dir.join(DATABASE);
        let meta = std::fs::metadata(&path).io_at("look at the vault", &path)?;
        Ok(self.file == (meta.dev(), meta.ino()))
    }

    /// Lets go of a file that is not current any more; from now on nothing is. It comes before the next `open`, because
    /// two connections of one process to different databases of one path would share, and lose, the locks on `vault.db-shm`.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn close(&mut self) -> Result<()> {
        self.file = NO_FILE;
        self.conn = Connection::open_in_memory().map_err(|e| sql(&e))?;
        Ok(())
    }
}

/// A vault that is being made or restored: the folder's lock, and `vault.db.new`, whose presence says so.
#[derive(Debug)]
pub(super) struct Fresh {
    dir: PathBuf,
    folder: nix::fcntl::Flock<std::fs::File>,
    pub(super) unfinished: PathBuf,
    pub(super) root: PathBuf,
}

impl Fresh {
    /// # Errors
    /// `Exists`, `Busy`, or the folder cannot be written.
    pub(super) fn begin(dir: &Path) -> Result<Self> {
        Dirs::ensure(dir)?;
        // Two first uses at the same time: one makes the vault, the other waits here and then finds it.
        let folder = Dirs::lock(dir)?;
        let (database, unfinished, root) = (dir.join(DATABASE), dir.join(UNFINISHED), dir.join(ROOT_KEY));
        if exists(&database)? {
            return Err(Error::new(ErrorKind::Exists, "there is a vault already").at(&database));
        }
        let fresh = Self { dir: dir.to_owned(), folder, unfinished, root };
        if exists(&fresh.unfinished)? {
            // Somebody was killed in here. No vault.db was ever completed, so nothing hangs on this root key.
            fresh.clear()?;
        }
        if exists(&fresh.root)? {
            return Err(Error::new(ErrorKind::Exists, "a root key without its vault.db").at(&fresh.root).hint(
                "restore vault.db from your backup; only if no backup exists and nothing depends on this key, remove it",
            ));
        }
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh.unfinished)
            .io_at("create the vault", &fresh.unfinished)?;
        fresh.sync()?; // the marker is there before the root key can be
        Ok(fresh)
    }

    /// Everything is in `vault.db.new` and on the medium: now it is the vault.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(super) fn finish(&self) -> Result<()> {
        self.sync()?; // so are the names of root.key and of the file
        let database = self.dir.join(DATABASE);
        std::fs::rename(&self.unfinished, &database).io_at("finish the vault", &database)?;
        self.sync()
    }

    /// Gives it up: what was made is gone, as far as the folder lets one.
    pub(super) fn abandon(&self) {
        // Unless it got its name, and only the sync after that failed.
        let done =
            exists(&self.dir.join(DATABASE)).and_then(|named| if named { Ok(()) } else { self.clear() });
        if let Err(e) = done {
            log::warn!("{}", e.chain());
        }
    }

    /// The marker last: without it, a root key is somebody's.
    fn clear(&self) -> Result<()> {
        for name in [ROOT_KEY, "vault.db.new-wal", "vault.db.new-shm", "vault.db.new-journal", UNFINISHED] {
            remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.folder.sync_all().io_at("sync folder", &self.dir)
    }
}

/// Makes the files of a new vault; `fill` writes the first rows into the empty schema.
///
/// # Errors
/// `Exists`, or the folder cannot be written.
pub(super) fn create(dir: &Path, fill: impl FnOnce(&mut Connection, &RootKey) -> Result<()>) -> Result<()> {
    let fresh = Fresh::begin(dir)?;
    let key = RootKey::random()?;
    write_whole(&fresh.root, key.expose())?;
    let mut conn = connect(&fresh.unfinished)?;
    migrate(&mut conn)?;
    fill(&mut conn, &key)?;
    let unfinished = &fresh.unfinished;
    // Everything into the one file that is renamed. Closing would do it as well, but says nothing when the disk is full.
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(|e| sql(&e).at(unfinished))?;
    conn.close().map_err(|(_, e)| sql(&e).at(unfinished))?;
    fresh.finish()
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().io_at("look for", path)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).io_at("remove", path),
        _ => Ok(()),
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(std::time::Duration::from_secs(5))?;
        let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        conn.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON;
             PRAGMA trusted_schema = OFF;",
        )?;
        Ok((conn, mode))
    };
    let (conn, mode) = open().map_err(|e| sql(&e).at(path))?;
    if mode != "wal" {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the vault's journal: found {mode}, allowed wal"),
        )
        .at(path)
        .hint("keep the vault on a local file system"));
    }
    Ok(conn)
}

/// The file's mode is the authentication: who can write here can enable any key for anybody.
fn check_private(meta: &std::fs::Metadata, path: &Path) -> Result<()> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, format!("the vault: found mode {mode:04o}, allowed 0600"))
        .at(path)
        .hint(format!("check who could have changed it, then: chmod 600 '{}'", path.display())))
}

fn check_kind(conn: &Connection) -> Result<()> {
    let id: i32 = conn.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(|e| sql(&e))?;
    if id != APPLICATION_ID {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("open the vault: found application id {id:#010x}, allowed {APPLICATION_ID:#010x}"),
        )
        .hint("this SQLite file is not a wrapdisk vault; restore vault.db from your backup"));
    }
    Ok(())
}

/// Brings the schema up to date; refuses one that is newer than this program.
fn migrate(conn: &mut Connection) -> Result<()> {
    let version = |conn: &Connection| conn.query_row("PRAGMA user_version", [], |row| row.get::<_, usize>(0));
    let found = version(conn).map_err(|e| sql(&e))?;
    if found > MIGRATIONS.len() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("open the vault: found schema {found}, allowed 1 to {}", MIGRATIONS.len()),
        )
        .hint("a newer wrapdisk made it: use that one"));
    }
    if found == MIGRATIONS.len() {
        return Ok(());
    }
    let mut up = || {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let from = version(&tx)?; // again: another process may have been here meanwhile
        for (at, step) in MIGRATIONS.iter().enumerate().skip(from) {
            tx.execute_batch(step)?;
            tx.pragma_update(None, "user_version", at + 1)?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.commit()
    };
    up().map_err(|e| sql(&e))
}

/// The error of administration: what a caller of `open` sees.
pub(super) fn sql(e: &rusqlite::Error) -> Error {
    from_sqlite(e).into()
}
