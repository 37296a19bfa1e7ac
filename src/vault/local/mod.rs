//! The embedded vault: one SQLite file `vault.db`, private keys sealed under `root.key` beside it (KEY-VAULT section 2).
//! No network: it is called in process, in the name of an identity, and the files' mode is the authentication.
//!
//! Must never see: stores, disks, containers, FUSE.
//!
//! Invariants:
//! 1. One operation = one `BEGIN IMMEDIATE` transaction: read the rows, do it, append the audit record, commit, answer.
//!    So two processes never interleave, and there is no answer without a record.
//! 2. A plaintext private key exists only while one operation uses it, the root key likewise.
//! 3. A refusal changes nothing but the audit.
//!
//! Several processes may have the same vault open. A connection must not be carried over a `fork`: open after it.
//!
//! Who holds `vault.db` and `root.key` holds every key in it (KEY-VAULT section 10).

mod audit;
mod audit_list;
mod audit_verify;
mod authz;
mod backup;
mod credentials;
mod crypt;
mod db;
mod durable;
mod grants;
mod identities;
mod import;
mod keys;
mod lifecycle;
mod model;
mod passphrase;
mod policy;
mod refusal;
mod root_change;
mod root_file;
mod rotation;
mod rows;
mod rsa;
mod seal;
mod secrets;
mod settings;
mod tokens;
mod turned_down;
mod unit_credential;
mod whole;
mod whole_file;
mod work;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rusqlite::{Connection, TransactionBehavior, params};
use uuid::Uuid;

use self::db::Db;
use self::refusal::{from_sqlite, transient};
use self::seal::{FIRST_GENERATION, Place, RootKey};
use self::work::{Task, Work};
use super::{Call, VaultError};
use crate::error::{Error, ErrorKind, Result};

pub use self::audit::{AuditHead, AuditRecord};
pub use self::audit_list::{AuditFilter, AuditResult};
pub use self::audit_verify::KeptHead;
pub use self::authz::{Grant, IdentityKind, Permission, Role};
#[doc(hidden)]
pub use self::backup::fuzz_backup;
pub use self::credentials::{Credential, CredentialKind};
pub use self::identities::Identity;
pub use self::import::ImportedKey;
pub use self::model::{
    CipherAlg, DeletedKey, KeyAttributes, KeyUpdate, NewKey, Page, SignAlg, VaultSettings,
};
pub use self::passphrase::Cost;
pub use self::policy::{LifetimeAction, Period, PolicyAction, RotationPolicy, Trigger};
pub use self::refusal::{Fail, Refusal};
pub use self::root_file::{NewSeal, SealMethod, Unlock};
pub use self::rsa::RsaBits;
pub use self::tokens::{SignIn, Token, TokenError};
pub use self::turned_down::TurnedDown;
pub use self::unit_credential::{CREDENTIAL, PASSPHRASE_CREDENTIAL};
pub use self::whole::{Restored, WholeBackup};

/// The embedded vault of one folder.
pub struct LocalVault {
    dir: PathBuf,
    facts: Facts,
    admin: Uuid,
    db: Mutex<Db>,
    durable: durable::Durable,
    sign_ins: Mutex<tokens::Brake>,
    unlock: Unlock,
}

/// What a vault is called, and which root key it is on. Only the generation ever changes: each operation reads its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    id: Uuid,
    name: String,
    /// Of the root key, when this was read.
    generation: u32,
    /// Like a directory's, for tokens and messages.
    tenant: Uuid,
    /// A label, in Azure's words.
    location: String,
}

impl Facts {
    fn is_at(&self, host: &str) -> bool {
        host.eq_ignore_ascii_case(&format!("{}.vault.localhost", self.id))
    }
}

/// What of the vault the seal check is sealed for.
const SEAL_CHECK: &str = "check";

impl LocalVault {
    /// Makes a vault: `dir` (0700), `root.key` and `vault.db` (0600).
    ///
    /// # Errors
    /// `Exists`, `InvalidInput` (name), or the folder cannot be written.
    pub fn init(dir: &Path, name: &str) -> Result<Self> {
        if !crate::envelope::valid_name(name) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("vault name: found \"{}\", allowed 1 to 127 of [0-9A-Za-z-]", name.escape_debug()),
            ));
        }
        let facts = Facts {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            generation: FIRST_GENERATION,
            tenant: Uuid::new_v4(),
            location: "local".to_owned(),
        };
        db::create(dir, |conn, root| first_rows(conn, root, &facts))?;
        Self::open(dir)
    }

    /// Opens a vault whose root key needs nobody to ask.
    ///
    /// # Errors
    /// As [`LocalVault::open_with`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, Unlock::unattended())
    }

    /// Opens a vault.
    ///
    /// # Errors
    /// `NotFound`; `PermissionDenied` (database or root key open to others); `Unsupported` (newer schema); `Damaged` (not a vault,
    /// or not its root key); `WrongKey` (passphrase or credential of the root key); `Unreachable` (busy).
    pub fn open_with(dir: &Path, unlock: Unlock) -> Result<Self> {
        // Absolute: a mount changes its working directory.
        let dir = std::path::absolute(dir).map_err(|e| Error::io("resolve", e).at(dir))?;
        let mut db = Db::open(&dir)?;
        let (root, facts) = root_change::current(&dir, &unlock, &db.conn)?;
        root_change::finish_interrupted(&dir, &unlock, &db.conn)?;
        rows::adopt(&mut db.conn, &root, &facts).map_err(|fail| Error::from(fail).at(&dir))?;
        let admin = db
            .conn
            .query_row("SELECT oid FROM identity WHERE kind = 'admin'", [], |row| row.get::<_, String>(0))
            .and_then(|oid| uuid_of(&oid))
            .map_err(|e| db::sql(&e).at(&dir))?;
        let vault = Self {
            dir,
            facts,
            admin,
            db: Mutex::new(db),
            durable: durable::Durable::default(),
            sign_ins: Mutex::default(),
            unlock,
        };
        vault.upkeep();
        Ok(vault)
    }

    /// Whether there is a vault in this folder.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(db::DATABASE).exists()
    }

    /// Are key identifiers with this host of this vault (RULINGS 8)?
    #[must_use]
    pub fn is_at(&self, host: &str) -> bool {
        self.facts.is_at(host)
    }

    /// Part of every kid: `https://ID.vault.localhost/keys/...`.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.facts.id
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// A call as the owner of the files, who may do everything.
    #[must_use]
    pub fn admin(&self, reason: &str) -> Call {
        Call::new(self.admin, reason)
    }

    /// A number that grows with every change to keys, grants and identities, and with nothing else (RULINGS 24).
    /// Cheap, not audited.
    ///
    /// # Errors
    /// `Transient`, `Corrupt`.
    pub fn policy_generation(&self) -> std::result::Result<u64, VaultError> {
        let db = self.current()?;
        db.conn
            .prepare_cached("SELECT policy_generation FROM vault")
            .and_then(|mut q| q.query_row([], |row| row.get(0)))
            .map_err(|e| from_sqlite(&e))
    }

    /// Records that a container was opened without the vault, by a recovery passphrase (RULINGS 27): the one use of a data
    /// key that no wrap or unwrap shows.
    ///
    /// # Errors
    /// `Transient` when it cannot be written, `Denied` for an identity that may not read keys.
    pub fn note_recovery(&self, container: &str, call: &Call) -> std::result::Result<(), Fail> {
        let path = format!("/disks/{container}");
        let task =
            Task { operation: "DiskRecoveryOpen", permission: Permission::Get, path: &path, action: "" };
        self.audited(task, call, |work| {
            work.require(None)?;
            work.change = Some(format!("opened by passphrase: {}", call.reason));
            Ok(())
        })
    }

    /// The connection, to the file that is there now.
    fn current(&self) -> std::result::Result<MutexGuard<'_, Db>, VaultError> {
        // A panic in a transaction has rolled it back: the connection is as good as before.
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let unreachable = |e: Error| transient(e.chain());
        if !db.is_current(&self.dir).map_err(unreachable)? {
            db.close().map_err(unreachable)?;
            let replacement = Db::open(&self.dir).map_err(unreachable)?;
            let (facts, _) = Facts::load(&replacement.conn).map_err(|e| from_sqlite(&e))?;
            if facts.id != self.facts.id {
                return Err(transient(format!(
                    "{}: vault.db was replaced by that of another vault: found {}, allowed {}",
                    self.dir.display(),
                    facts.id,
                    self.facts.id
                )));
            }
            *db = replacement;
        }
        Ok(db)
    }
}

impl fmt::Debug for LocalVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalVault(\"{}\", {})", self.facts.name, self.facts.id)
    }
}

impl Facts {
    /// With the seal check's blob.
    fn load(conn: &Connection) -> rusqlite::Result<(Self, Vec<u8>)> {
        let columns = "id, name, seal_generation, seal_check, tenant_id, location";
        conn.query_row(&format!("SELECT {columns} FROM vault"), [], |row| {
            let facts = Self {
                id: uuid_of(&row.get::<_, String>(0)?)?,
                name: row.get(1)?,
                generation: row.get(2)?,
                tenant: uuid_of(&row.get::<_, String>(4)?)?,
                location: row.get(5)?,
            };
            Ok((facts, row.get(3)?))
        })
    }

    fn check_place(&self) -> Place<'_> {
        Place { vault: &self.id, key: const { &Uuid::nil() }, version: SEAL_CHECK }
    }
}

/// The vault's own row, the administrator, and the first audit record.
fn first_rows(conn: &mut Connection, root: &RootKey, facts: &Facts) -> Result<()> {
    let check = root.seal(facts.check_place(), facts.generation, &[])?;
    let admin = Uuid::new_v4();
    let mut fill = || -> std::result::Result<(), Fail> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute(
            "INSERT INTO vault (one, id, name, tenant_id, location, created, seal_method, seal_generation, seal_check,
                                policy_generation)
             VALUES (1, ?1, ?2, ?3, ?7, ?4, 'file', ?5, ?6, 1)",
            params![
                facts.id.to_string(),
                facts.name,
                facts.tenant.to_string(),
                now(),
                facts.generation,
                check,
                facts.location
            ],
        )?;
        tx.execute(
            "INSERT INTO identity (oid, client_id, name, kind, enabled, created)
             VALUES (?1, ?2, 'admin', 'admin', 1, ?3)",
            params![admin.to_string(), Uuid::new_v4().to_string(), now()],
        )?;
        let call = Call::new(admin, "vault init");
        let event = audit::Event {
            operation: "VaultPatch",
            vault_name: &facts.name,
            status: 200,
            signature: "OK",
            description: None,
            duration: std::time::Duration::ZERO,
            call: &call,
            client_id: None,
            subject: &format!("https://{}.vault.localhost", facts.id),
            action: "",
            policy_match: true,
            bits: None,
            change: Some("the vault was made"),
        };
        audit::append(&tx, root, &facts.id, &event)?;
        Ok(tx.commit()?)
    };
    fill().map_err(Error::from)
}

fn uuid_of(text: &str) -> rusqlite::Result<Uuid> {
    Uuid::parse_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

/// Unix seconds.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or(0) // a clock before 1970
}
