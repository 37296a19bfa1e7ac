//! The providers that tests/vault_contract.rs asks, each with the little administration that the questions need.

#[cfg(all(feature = "azure", feature = "serve"))]
pub(crate) mod elsewhere;

use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;
use wrapdisk::envelope::Kid;
use wrapdisk::vault::local::{IdentityKind, LocalVault, NewKey, Role, RsaBits};
use wrapdisk::vault::{Call, KeyInfo, KeyVault, VaultError};

/// What the questions need done by an administrator, in whatever way the provider has for it.
pub(crate) trait Admin {
    fn vault(&self) -> &dyn KeyVault;
    fn new_version(&self, name: &str) -> KeyInfo;
    fn set_enabled(&self, kid: &Kid, enabled: bool);
    fn set_window(&self, kid: &Kid, not_before: Option<i64>, expires: Option<i64>);
    fn allow_only(&self, kid: &Kid, operations: &str);
    /// An identity that may wrap and unwrap with this key (by name), or with all; `None`: no grant.
    fn identity(&self, grant: Option<Option<&str>>) -> Call;
    fn set_identity_enabled(&self, call: &Call, enabled: bool);
    /// Number of records, and the last one's operation and status.
    fn last_record(&self) -> (u64, String, u64);
    /// How a message names this caller and this vault.
    fn words(&self, call: &Call) -> [String; 2];
    /// Is this how the provider turns away whom the vault does not know (any more)?
    fn is_unknown_caller(&self, e: &VaultError) -> bool;
    /// A caller whom the vault does not know is recorded as this, by operation and status.
    fn record_of_unknown_caller(&self) -> (&'static str, u64);
}

/// The embedded vault.
pub(crate) struct Local {
    state: PathBuf,
    pub(crate) vault: LocalVault,
    _folder: Option<TempDir>,
}

impl Local {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = LocalVault::init(dir.path(), "default").unwrap();
        Self { state: dir.path().to_owned(), vault, _folder: Some(dir) }
    }

    /// One that is there.
    #[cfg(all(feature = "azure", feature = "serve"))]
    pub(crate) fn over(state: &std::path::Path) -> Self {
        Self { state: state.to_owned(), vault: LocalVault::open(state).unwrap(), _folder: None }
    }

    pub(crate) fn admin(&self) -> Call {
        self.vault.admin("contract")
    }

    fn sql(&self, change: &str, params: impl rusqlite::Params) {
        let db = Connection::open(self.state.join("vault.db")).unwrap();
        db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
        assert_eq!(db.execute(change, params).unwrap(), 1, "{change}");
    }
}

impl Admin for Local {
    fn vault(&self) -> &dyn KeyVault {
        &self.vault
    }
    fn new_version(&self, name: &str) -> KeyInfo {
        self.vault.create_key(name, &NewKey::wrapping(RsaBits::B2048), &self.admin()).unwrap()
    }
    fn set_enabled(&self, kid: &Kid, enabled: bool) {
        let info = self.vault.set_enabled(&kid.into(), enabled, &self.admin()).unwrap();
        assert_eq!((info.kid.as_str(), info.enabled), (kid.as_str(), enabled));
    }
    fn set_window(&self, kid: &Kid, not_before: Option<i64>, expires: Option<i64>) {
        self.sql(
            "UPDATE key_version SET nbf = ?1, exp = ?2 WHERE version = ?3",
            (not_before, expires, kid.version()),
        );
    }
    fn allow_only(&self, kid: &Kid, operations: &str) {
        self.sql("UPDATE key_version SET key_ops = ?1 WHERE version = ?2", (operations, kid.version()));
    }
    fn identity(&self, grant: Option<Option<&str>>) -> Call {
        let name = format!("set-{}", uuid::Uuid::new_v4());
        let oid = self.vault.create_identity(&name, IdentityKind::System, &self.admin()).unwrap();
        if let Some(key) = grant {
            self.vault.grant(oid, Role::CryptoServiceEncryptionUser, key, &self.admin()).unwrap();
        }
        Call::new(oid, "mount /mnt/vm")
    }
    fn set_identity_enabled(&self, call: &Call, enabled: bool) {
        self.sql("UPDATE identity SET enabled = ?1 WHERE oid = ?2", (enabled, call.identity.to_string()));
    }
    fn last_record(&self) -> (u64, String, u64) {
        let records = self.vault.audit(&Default::default()).unwrap();
        let last = records.last().unwrap();
        let value = last.value();
        let operation = value["operationName"].as_str().unwrap().to_owned();
        (last.seq, operation, value["properties"]["httpStatusCode"].as_u64().unwrap())
    }
    fn words(&self, call: &Call) -> [String; 2] {
        [call.identity.to_string(), "vault \"default\"".to_owned()]
    }
    fn is_unknown_caller(&self, e: &VaultError) -> bool {
        matches!(e, VaultError::Denied(wrapdisk::vault::Denial::NoPermission, _))
    }
    fn record_of_unknown_caller(&self) -> (&'static str, u64) {
        ("KeyUnwrap", 403)
    }
}
