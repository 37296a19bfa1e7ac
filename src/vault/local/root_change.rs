//! Changing the root key: another seal around it, or another key altogether (RULINGS 31).
//!
//! Must never see: RSA, identities.
//!
//! Rotation touches two files, and a kill must find them in step:
//! 1. `root.key.new` with the next key, sealed like `root.key`, is on the medium;
//! 2. one transaction seals everything under it: the keys' wrapping keys, the vault's own secrets, the seal check, the MACs
//!    of the audit; the backup sub-key of the retired key becomes one of those secrets;
//! 3. `root.key.new` is renamed over `root.key`.
//!
//! Killed before the commit, `root.key` opens the database; after it, `root.key.new` does, and whoever opens the vault next
//! renames it. Every operation looks for the root key of the generation that its own transaction reads.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior, params};

use super::authz::Caller;
use super::backup::retired_backup_key;
use super::identities::PATCH;
use super::refusal::{Fail, transient};
use super::root_file::{NEXT_ROOT_KEY, NewSeal, SealMethod, Unlock, install};
use super::rows::wrapping_place;
use super::seal::{ROOT_KEY, RootKey};
use super::work::Work;
use super::{Facts, LocalVault, audit, db, secrets, uuid_of};
use crate::dirs::Dirs;
use crate::error::{Error, ErrorKind, Result};
use crate::vault::Call;

/// The root key that belongs to what `conn` reads, and the facts as they are there.
///
/// # Errors
/// As [`Unlock::load`]; `Damaged`: no root key here belongs to this database.
pub(super) fn current(dir: &Path, unlock: &Unlock, conn: &Connection) -> Result<(RootKey, Facts)> {
    let (facts, check) = Facts::load(conn).map_err(|e| db::sql(&e).at(dir))?;
    let fits = |root: &RootKey| root.unseal(facts.check_place(), facts.generation, &check).map(|_| ());
    let trouble = match unlock.load(&dir.join(ROOT_KEY)) {
        Ok(root) => match fits(&root) {
            Ok(()) => return Ok((root, facts)),
            Err(e) => Error::new(ErrorKind::Damaged, "open the vault: root.key does not belong to vault.db")
                .at(dir)
                .hint("restore the two files from the same backup")
                .caused_by(e),
        },
        Err(e) => e,
    };
    // A rotation is between its commit and its rename, or was killed there.
    let next = dir.join(NEXT_ROOT_KEY);
    if next.exists()
        && let Ok(root) = unlock.load(&next)
        && fits(&root).is_ok()
    {
        return Ok((root, facts));
    }
    Err(trouble)
}

/// Ends a rotation that was killed between its commit and its rename.
pub(super) fn finish_interrupted(dir: &Path, unlock: &Unlock, conn: &Connection) -> Result<()> {
    if !dir.join(NEXT_ROOT_KEY).exists() {
        return Ok(());
    }
    // Whoever holds the lock is rotating, or does this: then there is nothing to do here.
    match Dirs::try_lock(dir)? {
        Some(_turn) => finish(dir, unlock, conn),
        None => Ok(()),
    }
}

/// Under the folder's lock.
fn finish(dir: &Path, unlock: &Unlock, conn: &Connection) -> Result<()> {
    let (path, next) = (dir.join(ROOT_KEY), dir.join(NEXT_ROOT_KEY));
    if !next.exists() {
        return Ok(());
    }
    let (facts, check) = Facts::load(conn).map_err(|e| db::sql(&e).at(dir))?;
    let fits = |file: &Path| {
        let root = unlock.load(file)?;
        root.unseal(facts.check_place(), facts.generation, &check).map(|_| ())
    };
    if fits(&path).is_err() && fits(&next).is_ok() {
        log::info!("{}: a rotation of the root key was interrupted; it is finished now", dir.display());
        install(&next, &path)?;
    }
    Ok(())
}

impl Work<'_> {
    /// Everything that is sealed under this root key, under another.
    fn reseal(&self, next: &RootKey, to: &Facts) -> Result<(), Fail> {
        let (old, from) = (self.root, self.facts);
        for (id, sealed) in self.blobs("SELECT id, wrapping FROM key WHERE wrapping IS NOT NULL")? {
            let key = uuid_of(&id)?;
            let place = wrapping_place(from, &key);
            let sealed =
                next.seal(place, to.generation, old.unseal(place, from.generation, &sealed)?.expose())?;
            self.tx.execute("UPDATE key SET wrapping = ?1 WHERE id = ?2", params![sealed, id])?;
        }
        for (name, sealed) in self.blobs("SELECT name, sealed FROM sealed_secret")? {
            let place = secrets::place(from, &name);
            let sealed =
                next.seal(place, to.generation, old.unseal(place, from.generation, &sealed)?.expose())?;
            self.tx.execute("UPDATE sealed_secret SET sealed = ?1 WHERE name = ?2", params![sealed, name])?;
        }
        let check = next.seal(to.check_place(), to.generation, &[])?;
        self.tx.execute(
            "UPDATE vault SET seal_generation = ?1, seal_check = ?2",
            params![to.generation, check],
        )?;
        audit::resign(self.tx, old, next, &from.id)
    }

    fn blobs(&self, sql: &str) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
        self.tx.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }
}

impl LocalVault {
    /// Makes a new root key and seals everything under it; its generation comes back. Backups of keys that were made before
    /// still open. Backups of the whole vault hold the root key of their time.
    ///
    /// # Errors
    /// Refused: 403. Broken: a sealed row does not open (nothing is changed then), the files cannot be written.
    pub fn rotate_root_key(&self, call: &Call) -> Result<u32, Fail> {
        let _turn = Dirs::lock(&self.dir)?;
        let (path, next_path) = (self.dir.join(ROOT_KEY), self.dir.join(NEXT_ROOT_KEY));
        finish(&self.dir, &self.unlock, &self.current().map_err(Fail::Broken)?.conn)?;
        // Who may not leaves a record, which that way writes.
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            work.change = Some("rotation of the root key begins".into());
            Ok(())
        })?;
        let mut db = self.current().map_err(Fail::Broken)?;
        let tx = db.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (old, from) = current(&self.dir, &self.unlock, &tx)?;
        let generation = from
            .generation
            .checked_add(1)
            .ok_or_else(|| Fail::Broken(transient("the root key's generations are used up")))?;
        let to = Facts { generation, ..from.clone() };
        let next = RootKey::random()?;
        self.unlock.save_like(&path, &next, &next_path)?;
        let caller = Caller::load(&tx, call.identity)?;
        let old_work = Work::new(&tx, &old, &from, &caller, PATCH);
        old_work.reseal(&next, &to)?;
        let mut work = Work::new(&tx, &next, &to, &caller, PATCH);
        work.allowed = true;
        work.keep_secret(&retired_backup_key(from.generation), old.backup_key()?.expose())?;
        work.change = Some(format!("the root key was rotated: generation {generation}"));
        super::work::record(&work, PATCH, call, None, std::time::Duration::ZERO)?;
        tx.commit()?;
        drop(db);
        install(&next_path, &path)?;
        Ok(generation)
    }

    /// What the root key is sealed under.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seal_method(&self) -> Result<SealMethod> {
        Unlock::method(&self.dir.join(ROOT_KEY))
    }

    /// The root key's generation: how often it was rotated, and one.
    ///
    /// # Errors
    /// Broken.
    pub fn root_generation(&self) -> Result<u32, Fail> {
        Ok(Facts::load(&self.current().map_err(Fail::Broken)?.conn)?.0.generation)
    }

    /// Seals the root key in another way. The key stays what it is, so what a copy of the old file opens does as well:
    /// rotate it afterwards.
    ///
    /// # Errors
    /// Refused: 403. Broken: the file cannot be written; a credential that is too short.
    pub fn reseal_root_key(&self, seal: &NewSeal<'_>, call: &Call) -> Result<(), Fail> {
        let _turn = Dirs::lock(&self.dir)?;
        finish(&self.dir, &self.unlock, &self.current().map_err(Fail::Broken)?.conn)?;
        let method = match seal {
            NewSeal::File => SealMethod::File,
            NewSeal::Passphrase { .. } => SealMethod::Passphrase,
            NewSeal::Credential { .. } => SealMethod::Credential,
        };
        self.audited(PATCH, call, |work| {
            work.require(None)?;
            // The file says itself what it is; the column is for whoever looks at the database.
            self.unlock.replace(&self.dir, work.root, seal)?;
            work.change = Some(format!("the root key is sealed by: {}", method.name()));
            work.tx.execute("UPDATE vault SET seal_method = ?1", [method.name()])?;
            Ok(())
        })
    }
}
