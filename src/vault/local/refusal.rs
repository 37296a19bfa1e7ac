//! How an operation of the embedded vault fails: refused after a look at the rows, or not answered at all.
//! The words of a refusal are Azure's (KEY-VAULT section 3), followed by who, what and the next step.
//!
//! Must never see: secrets, the database.
//!
//! Invariant (RULINGS 20): only [`Fail::Refused`] becomes [`VaultError::Denied`], and only code that has read a row makes
//! one. What SQLite or the file system says becomes [`VaultError::Transient`], a broken file [`VaultError::Corrupt`].

use crate::error::Error;
use crate::vault::{Denial, VaultError};

/// Why an operation gave no answer.
#[derive(Debug)]
pub enum Fail {
    /// The vault looked and says no: this goes into the audit.
    Refused(Refusal),
    /// It could not look, or could not work: nothing happened.
    Broken(VaultError),
}

/// A "no", for the caller and for the audit.
#[derive(Debug)]
pub struct Refusal {
    /// As over HTTP.
    pub status: u16,
    /// `resultSignature`: Azure's outer code.
    pub signature: &'static str,
    /// Azure's inner code, where there is one.
    pub inner: Option<&'static str>,
    /// `resultDescription`: Azure's sentence.
    pub description: String,
    /// For the caller.
    pub error: VaultError,
}

impl Refusal {
    /// The vault's own row is damaged, as a matter of record.
    pub(super) fn damaged(message: String) -> Self {
        Self {
            status: 500,
            signature: "InternalError",
            inner: None,
            description: message.clone(),
            error: VaultError::Corrupt(message),
        }
    }
}

/// For callers that need no status code.
impl From<Fail> for VaultError {
    fn from(fail: Fail) -> Self {
        match fail {
            Fail::Broken(e) => e,
            Fail::Refused(refusal) => refusal.error,
        }
    }
}

impl From<Fail> for Error {
    fn from(fail: Fail) -> Self {
        VaultError::from(fail).into()
    }
}

impl From<Refusal> for Fail {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<rusqlite::Error> for Fail {
    fn from(e: rusqlite::Error) -> Self {
        Self::Broken(from_sqlite(&e))
    }
}

/// A sealed key that does not open, secret memory that is refused: the vault's trouble, not the caller's right.
impl From<Error> for Fail {
    fn from(e: Error) -> Self {
        use crate::error::ErrorKind;
        let message = e.chain();
        Self::Broken(match e.kind() {
            ErrorKind::Damaged => VaultError::Corrupt(message),
            _ => transient(message),
        })
    }
}

/// A failure that may pass: ask again.
pub(super) fn transient(message: impl Into<String>) -> VaultError {
    VaultError::Transient { message: message.into(), retry_after: None }
}

/// Busy, full, I/O error, missing file, no memory: all may pass. A file that is no database will not.
pub(super) fn from_sqlite(e: &rusqlite::Error) -> VaultError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let message = format!("the vault's database vault.db: {e}");
    match e.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => {
            VaultError::Corrupt(format!("{message}; restore it from your backup"))
        }
        // A column of another type than the schema says: STRICT tables make that impossible without damage.
        None if !matches!(e, rusqlite::Error::QueryReturnedNoRows) => VaultError::Corrupt(message),
        _ => transient(message),
    }
}

/// Who asked for what, of which vault: the second half of every refusal's message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    /// Azure's name of the permission: `unwrapKey`.
    pub(super) operation: &'static str,
    /// The key's URL, or its name.
    pub(super) key: &'a str,
    /// `name (oid)`, or the oid alone of an unknown identity.
    pub(super) identity: &'a str,
    /// The same in Azure's form: `appid=A;oid=O;iss=I`.
    pub(super) claims: &'a str,
    /// The vault's name.
    pub(super) vault: &'a str,
    /// The vault's location.
    pub(super) location: &'a str,
}

/// Status, outer and inner code of an answer (KEY-VAULT section 3).
type Code = (u16, &'static str, Option<&'static str>);

const fn forbidden(inner: &'static str) -> Code {
    (403, "Forbidden", Some(inner))
}

impl Scene<'_> {
    fn denied(&self, denial: Denial, code: Code, description: String, next: &str) -> Refusal {
        let (status, signature, inner) = code;
        let error = VaultError::Denied(denial, self.message(&description, next));
        Refusal { status, signature, inner, description, error }
    }

    fn rejected(&self, code: &'static str, status: u16, description: String, next: &str) -> Refusal {
        let signature = match status {
            404 => "KeyNotFound",
            409 => "Conflict",
            _ => "BadParameter",
        };
        let error = VaultError::Rejected { code, message: self.message(&description, next) };
        Refusal { status, signature, inner: None, description, error }
    }

    fn message(&self, description: &str, next: &str) -> String {
        format!(
            "{} (key {}, identity {}, vault \"{}\"); {next}",
            description.trim_end_matches('.'),
            self.key,
            self.identity,
            self.vault
        )
    }

    pub(super) fn no_permission(&self, next: &str) -> Refusal {
        let plain = format!(
            "The identity {} does not have keys {} permission on key vault '{}'.",
            self.identity, self.operation, self.vault
        );
        let description = format!(
            "The user, group or application '{}' does not have keys {} permission on key vault '{};location={}'. For help \
             resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125287",
            self.claims, self.operation, self.vault, self.location
        );
        let error = VaultError::Denied(Denial::NoPermission, self.message(&plain, next));
        let (status, signature, inner) = forbidden("ForbiddenByPolicy");
        Refusal { status, signature, inner, description, error }
    }

    /// For data operations: a container asks for a key that is gone; `recoverable`: under which name it can be had back.
    pub(super) fn deleted(&self, key: &str, recoverable: Option<&str>) -> Refusal {
        let next = match recoverable {
            Some(name) => format!("it was deleted and can be had back: wrapdisk key recover {name}"),
            None => "see what there is: wrapdisk key list; a lost key can only come back from a backup of the vault"
                .to_owned(),
        };
        let error = VaultError::Denied(Denial::Deleted, self.message(&plain_not_found(key), &next));
        not_found(not_found_help(key), error)
    }

    /// For administration: a name that was mistyped.
    pub(super) fn key_not_found(&self, key: &str) -> Refusal {
        let next = "see what there is: wrapdisk key list, wrapdisk key list-deleted";
        let message = self.message(&plain_not_found(key), next);
        not_found(not_found_help(key), VaultError::Rejected { code: "KeyNotFound", message })
    }

    /// Among the deleted keys.
    pub(super) fn deleted_key_not_found(&self, name: &str) -> Refusal {
        let description = format!("Deleted Key not found: {name}");
        let message = self.message(&description, "see what there is: wrapdisk key list-deleted");
        not_found(description, VaultError::Rejected { code: "KeyNotFound", message })
    }

    pub(super) fn deleted_but_recoverable(&self, name: &str) -> Refusal {
        let description = format!(
            "Key {name} is currently in a deleted but recoverable state, and its name cannot be reused; in this state, the \
             key can only be recovered or purged."
        );
        let refusal =
            self.conflict(description, &format!("wrapdisk key recover {name}, or key purge {name}"));
        Refusal { inner: Some("ObjectIsDeletedButRecoverable"), ..refusal }
    }

    /// The one answer to everybody who cannot prove who he is.
    pub(super) fn not_signed_in(&self) -> Refusal {
        let description = "Invalid client secret provided.".to_owned();
        let next = "unknown or disabled identity, or a wrong or expired secret: wrapdisk vault identity show";
        let error = VaultError::Auth(self.message(&description, next));
        Refusal { status: 401, signature: "Unauthorized", inner: Some("7000215"), description, error }
    }

    pub(super) fn identity_not_found(&self, who: &str) -> Refusal {
        let who: String = who.chars().take(64).flat_map(char::escape_debug).collect();
        let description = format!("The identity {who} was not found in this key vault.");
        let next = "see which there are: wrapdisk vault identity list";
        let error =
            VaultError::Rejected { code: "IdentityNotFound", message: self.message(&description, next) };
        Refusal { status: 404, signature: "NotFound", inner: None, description, error }
    }

    pub(super) fn disabled(&self, name: &str, version: &str) -> Refusal {
        self.denied(
            Denial::Disabled,
            forbidden("KeyDisabled"),
            format!("Operation {} is not allowed on a disabled key.", self.operation),
            &format!("enable it: wrapdisk key enable {name} --version {version}"),
        )
    }

    pub(super) fn operation_forbidden(&self) -> Refusal {
        self.denied(
            Denial::NoPermission,
            forbidden("KeyOperationForbidden"),
            format!("Operation {} is not permitted on this key.", self.operation),
            "its key_ops do not name the operation: use another key",
        )
    }

    pub(super) fn expired(&self, window: &str) -> Refusal {
        self.denied(
            Denial::Expired,
            forbidden("KeyNotYetValidOrExpired"),
            format!("Operation {} is not allowed outside the validity period of the key.", self.operation),
            &format!("it is valid {window}; make a new version: wrapdisk key create"),
        )
    }

    pub(super) fn firewall(&self, address: std::net::IpAddr) -> Refusal {
        self.denied(
            Denial::Firewall,
            forbidden("ForbiddenByFirewall"),
            format!("Client address ({address}) is not authorized and caller is not a trusted service"),
            "let it in: vault serve --allow",
        )
    }

    pub(super) fn purge_protected(&self) -> Refusal {
        let description = "Operation \"purge\" is not allowed because purge protection is enabled for this vault. Key Vault \
                           service will automatically purge it after the retention period has passed.";
        let next = "wait for its schedule: wrapdisk key show-deleted";
        self.denied(Denial::NoPermission, (403, "Forbidden", None), description.to_owned(), next)
    }

    /// Azure's words, which its recorded answers have; why it is malformed is for people.
    pub(super) fn malformed_backup(&self, why: &str) -> Refusal {
        let description = "Backup blob contains invalid or corrupt version.".to_owned();
        let next = format!("{why}: restore it where it was made, or make a portable backup");
        let refusal = self.bad_parameter(description, &next);
        Refusal { signature: "Malformed backup blob", ..refusal }
    }

    pub(super) fn wrong_vault(&self, id: &uuid::Uuid) -> Refusal {
        self.rejected(
            "WrongVault",
            400,
            "The key identifier belongs to another vault.".into(),
            &format!("this one is {id}.vault.localhost: use the vault that holds the key, or the recovery passphrase"),
        )
    }

    pub(super) fn bad_parameter(&self, description: String, next: &str) -> Refusal {
        self.rejected("BadParameter", 400, description, next)
    }

    pub(super) fn conflict(&self, description: String, next: &str) -> Refusal {
        self.rejected("Conflict", 409, description, next)
    }

    /// The one answer to every ciphertext that does not unwrap: which check failed is nobody's business.
    pub(super) fn bad_ciphertext(&self) -> Refusal {
        let description = "The parameter is incorrect.".to_owned();
        let error =
            VaultError::Corrupt(self.message(&description, "the wrapped key is damaged, or of another key"));
        Refusal { status: 400, signature: "BadParameter", inner: None, description, error }
    }
}

fn not_found(description: String, error: VaultError) -> Refusal {
    Refusal { status: 404, signature: "KeyNotFound", inner: None, description, error }
}

fn plain_not_found(key: &str) -> String {
    format!("A key with (name/id) {key} was not found in this key vault.")
}

fn not_found_help(key: &str) -> String {
    format!(
        "{} If you recently deleted this key you may be able to recover it using the correct recovery command. For help \
         resolving this issue, please see https://go.microsoft.com/fwlink/?linkid=2125182",
        plain_not_found(key)
    )
}
