//! Who may do what in the embedded vault: permissions, roles, identities (KEY-VAULT section 2). Default deny.
//!
//! Must never see: private keys.
//!
//! Invariants:
//! 1. Identities and grants are read from the rows at every use: a change counts from the next call on.
//! 2. The permission is checked before the key is looked for, so that names do not leak.
//! 3. The owner of the database file is the built-in identity `admin`: the file's mode is the authentication.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

/// What a call needs, in Azure's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// See a key.
    Get,
    /// See which keys there are.
    List,
    /// Make a key, or a version of one.
    Create,
    /// Take in a key from outside.
    Import,
    /// Change a key's attributes.
    Update,
    /// Delete a key softly.
    Delete,
    /// Bring a deleted key back.
    Recover,
    /// Take a key out as a sealed blob.
    Backup,
    /// Bring a sealed blob back.
    Restore,
    /// Destroy a deleted key for good.
    Purge,
    /// Make a new version by the key's policy.
    Rotate,
    /// See the rotation policy.
    GetRotationPolicy,
    /// Change the rotation policy.
    SetRotationPolicy,
    /// With the public half.
    Encrypt,
    /// With the private half.
    Decrypt,
    /// With the private half.
    Sign,
    /// With the public half.
    Verify,
    /// With the public half: encrypt a key.
    WrapKey,
    /// With the private half: decrypt a key.
    UnwrapKey,
    /// Hand out a key to attested code; this vault does not.
    Release,
    /// See the audit: the role auditor's, and the administrator's.
    Audit,
    /// Identities, grants, the root key: the administrator's alone.
    Manage,
    /// Prove who one is: everybody may try.
    SignIn,
}

impl Permission {
    /// What can be granted one by one, in Azure's order.
    pub const ALL: [Self; 20] = [
        Self::Get,
        Self::List,
        Self::Create,
        Self::Import,
        Self::Update,
        Self::Delete,
        Self::Recover,
        Self::Backup,
        Self::Restore,
        Self::Purge,
        Self::Rotate,
        Self::GetRotationPolicy,
        Self::SetRotationPolicy,
        Self::Encrypt,
        Self::Decrypt,
        Self::Sign,
        Self::Verify,
        Self::WrapKey,
        Self::UnwrapKey,
        Self::Release,
    ];

    /// Azure's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Create => "create",
            Self::Import => "import",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Recover => "recover",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Purge => "purge",
            Self::Rotate => "rotate",
            Self::GetRotationPolicy => "getrotationpolicy",
            Self::SetRotationPolicy => "setrotationpolicy",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::WrapKey => "wrapKey",
            Self::UnwrapKey => "unwrapKey",
            Self::Release => "release",
            Self::Audit => "audit",
            Self::Manage => "manage",
            Self::SignIn => "signIn",
        }
    }

    /// By its name, without regard to case; only what can be granted.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
            let allowed = Self::ALL.map(Self::name).join(", ");
            Error::new(
                ErrorKind::InvalidInput,
                format!("permission: found \"{shown}\", allowed all, {allowed}"),
            )
        })
    }
}

/// What can be granted to an identity, on the vault or on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A bundle with a name.
    Role(Role),
    /// One by one.
    Permissions(Vec<Permission>),
}

impl From<Role> for Grant {
    fn from(role: Role) -> Self {
        Self::Role(role)
    }
}

impl From<&Grant> for Grant {
    fn from(grant: &Grant) -> Self {
        grant.clone()
    }
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Role(role) => write!(f, "role {}", role.name()),
            Self::Permissions(list) => {
                let names: Vec<_> = list.iter().map(|p| p.name()).collect();
                write!(f, "permissions {}", names.join(","))
            }
        }
    }
}

/// A bundle of permissions that can be granted on the vault or on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// get, wrapKey, unwrapKey: what a set's identity gets.
    CryptoServiceEncryptionUser,
    /// get, list and every operation with a key.
    CryptoUser,
    /// Everything with keys but purge.
    CryptoOfficer,
    /// list, and the audit.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] =
        [Self::CryptoServiceEncryptionUser, Self::CryptoUser, Self::CryptoOfficer, Self::Auditor];

    /// Azure's name in lower case, as the command line and the database have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CryptoServiceEncryptionUser => "crypto service encryption user",
            Self::CryptoUser => "crypto user",
            Self::CryptoOfficer => "crypto officer",
            Self::Auditor => "auditor",
        }
    }

    /// By its name.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|r| r.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let allowed = Self::ALL.map(|r| format!("\"{}\"", r.name())).join(", ");
            Error::new(
                ErrorKind::InvalidInput,
                format!("role: found \"{}\", allowed {allowed}", text.escape_debug()),
            )
        })
    }

    pub(super) const fn permits(self, p: Permission) -> bool {
        use Permission::{
            Audit, Decrypt, Encrypt, Get, List, Manage, Purge, Sign, SignIn, UnwrapKey, Verify, WrapKey,
        };
        match self {
            Self::CryptoServiceEncryptionUser => matches!(p, Get | WrapKey | UnwrapKey),
            Self::CryptoUser => {
                matches!(p, Get | List | Encrypt | Decrypt | Sign | Verify | WrapKey | UnwrapKey)
            }
            Self::CryptoOfficer => !matches!(p, Purge | Audit | Manage | SignIn),
            Self::Auditor => matches!(p, List | Audit),
        }
    }
}

/// What an identity stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// A disk encryption set.
    System,
    /// A person or a program.
    User,
    /// The owner of the vault's files; there is one.
    Admin,
}

impl IdentityKind {
    /// As the database and the command line have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }

    /// The schema allows the three words.
    pub(super) fn of(word: &str) -> Self {
        match word {
            "system" => Self::System,
            "admin" => Self::Admin,
            _ => Self::User,
        }
    }
}

/// The identity in whose name a call is made, as far as the vault knows it.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) oid: Uuid,
    /// Name and client id; `None` for an oid that is nobody's, or disabled.
    pub(super) known: Option<Known>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) client_id: String,
    admin: bool,
    enabled: bool,
}

impl Caller {
    pub(super) fn load(db: &Connection, oid: Uuid) -> rusqlite::Result<Self> {
        let known = db
            .prepare_cached("SELECT name, client_id, kind, enabled FROM identity WHERE oid = ?1")?
            .query_row([oid.to_string()], |row| {
                Ok(Known {
                    name: row.get(0)?,
                    client_id: row.get(1)?,
                    admin: row.get::<_, String>(2)? == "admin",
                    enabled: row.get(3)?,
                })
            })
            .optional()?;
        Ok(Self { oid, known })
    }

    /// For messages.
    pub(super) fn label(&self) -> String {
        match &self.known {
            Some(known) => format!("\"{}\" ({})", known.name, self.oid),
            None => self.oid.to_string(),
        }
    }

    /// What would help when [`Caller::may`] says no.
    pub(super) fn advice(&self) -> &'static str {
        match &self.known {
            None => {
                "the vault knows no such identity: use the vault the set was made with, or assign another set"
            }
            Some(known) if !known.enabled => "the identity is disabled",
            Some(_) => {
                "its grant is missing: restore vault.db from your backup, or use the set that the key belongs to"
            }
        }
    }

    /// Whether the rows grant `permission` on this key (by name), or on the whole vault.
    pub(super) fn may(
        &self,
        db: &Connection,
        permission: Permission,
        key: Option<&str>,
    ) -> rusqlite::Result<bool> {
        match &self.known {
            Some(known) if known.enabled && known.admin => return Ok(true),
            Some(known) if known.enabled => {}
            _ => return Ok(false), // nobody's, or disabled: RULINGS 23
        }
        let single = db
            .prepare_cached(
                "SELECT 1 FROM access_permission p LEFT JOIN key k ON k.id = p.key
                  WHERE p.identity = ?1 AND p.permission = ?3 AND (p.key IS NULL OR k.name = ?2)",
            )?
            .exists(params![self.oid.to_string(), key, permission.name()])?;
        if single {
            return Ok(true);
        }
        let mut grants = db.prepare_cached(
            "SELECT p.role FROM access_policy p LEFT JOIN key k ON k.id = p.key
              WHERE p.identity = ?1 AND (p.key IS NULL OR k.name = ?2)",
        )?;
        let mut rows = grants.query(params![self.oid.to_string(), key])?;
        while let Some(row) = rows.next()? {
            // A role of a newer schema's grants nothing here.
            if Role::parse(&row.get::<_, String>(0)?).is_ok_and(|role| role.permits(permission)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
