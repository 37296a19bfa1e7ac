//! The file `sets.db`: making it, opening it, bringing its schema up to date, and what an SQLite failure means.
//!
//! Must never see: what is in the tables; that is `mod.rs` and `registry.rs`.
//!
//! Invariants:
//! 1. The file has mode 0600 from its first moment.
//! 2. A schema newer than ours, or somebody else's database, is refused and left as it was.
//! 3. Nobody here opens and closes the file behind SQLite's back: closing any descriptor of a file drops all POSIX
//!    locks that the process has on it (sqlite.org/howtocorrupt.html, 2.2).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, IoContext, Result};

/// "wdst": how `file` and we tell it from other SQLite databases.
const APPLICATION_ID: i32 = 0x7764_7374;

/// Step `n` brings schema `n` to `n + 1`; only ever appended to.
const MIGRATIONS: &[&str] =
    &[include_str!("schema.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];

/// Opens `path`, making it and its folder when missing.
pub(super) fn open(path: &Path) -> Result<Connection> {
    make_when_missing(path)?;
    refuse_when_shared(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(|e| failure(path, "open", &e))?;
    configure(&db).map_err(|e| failure(path, "open", &e))?;
    migrate(&mut db, path)?;
    Ok(db)
}

/// An empty file is an empty database. It gets its mode under another name (tempfile makes 0600) and is closed before
/// it gets its real one, because of invariant 3.
fn make_when_missing(path: &Path) -> Result<()> {
    if path.try_exists().io_at("look for", path)? {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    Dirs::ensure(dir)?;
    let empty = tempfile::NamedTempFile::new_in(dir).io_at("create", path)?.into_temp_path();
    match empty.persist_noclobber(path) {
        Ok(()) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()), // another process was faster
        Err(e) => Err(Error::io("create", e.error).at(path)),
    }
}

/// Who can write here decides which key a disk trusts, so a loose mode is a refusal and not repaired in silence.
fn refuse_when_shared(path: &Path) -> Result<()> {
    let mode = std::fs::metadata(path).io_at("stat", path)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, format!("mode: found {mode:04o}, allowed 0600"))
        .at(path)
        .hint(format!("check who could have changed it, then: chmod 600 '{}'", path.display())))
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "synchronous", "FULL")
}

fn migrate(db: &mut Connection, path: &Path) -> Result<()> {
    let failed = |e| failure(path, "prepare", &e);
    let newest = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    let change = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let number = |name| change.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (owner, version) =
        (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    let objects: i64 =
        change.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;

    let fresh = owner == 0 && version == 0 && objects == 0;
    if owner != i64::from(APPLICATION_ID) && !fresh {
        let found = format!("application_id: found {owner:#x}, allowed {APPLICATION_ID:#x}");
        return Err(Error::new(ErrorKind::InvalidInput, found)
            .at(path)
            .hint("this is another program's database: move it away and try again"));
    }
    let known = usize::try_from(version).ok().and_then(|done| MIGRATIONS.get(done..));
    let Some(missing) = known else {
        let found = format!("schema: found {version}, allowed 1 to {newest}");
        return Err(Error::new(ErrorKind::Unsupported, found)
            .at(path)
            .hint("a newer wrapdisk wrote it: use that one"));
    };
    for step in missing {
        change.execute_batch(step).map_err(failed)?;
    }
    if !missing.is_empty() {
        change.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        change.pragma_update(None, "user_version", newest).map_err(failed)?;
    }
    change.commit().map_err(failed)?;
    // Kept in the file, so this changes something once. After the checks, so that a refused file stays as it was.
    db.pragma_update(None, "journal_mode", "WAL").map_err(failed)
}

/// What went wrong while trying to `what` (a verb) `path`.
pub(super) fn failure(path: &Path, what: &str, e: &rusqlite::Error) -> Error {
    let code = e.sqlite_error_code();
    let kind = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ErrorKind::Busy,
        Some(ErrorCode::DiskFull) => ErrorKind::NoSpace,
        Some(ErrorCode::ReadOnly) => ErrorKind::ReadOnly,
        Some(ErrorCode::PermissionDenied) => ErrorKind::PermissionDenied,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Damaged,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => ErrorKind::Io,
        None if matches!(e, rusqlite::Error::FromSqlConversionFailure(..)) => ErrorKind::Damaged,
        _ => ErrorKind::Other,
    };
    // As text: rusqlite gives SQLite's message again as its own source, and a chain would say it twice.
    let error = Error::new(kind, what).at(path).caused_by(e.to_string());
    match kind {
        ErrorKind::Busy => error.hint("another wrapdisk has been writing for 5 s: try again"),
        ErrorKind::Damaged => error.hint("restore it from a backup of the state folder"),
        _ => error,
    }
}

/// What a row holds is not what we write.
pub(super) fn odd(e: &Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, e.chain().into())
}
