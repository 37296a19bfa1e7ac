//! The provider for vaults elsewhere, in front of a real `vault serve`: each identity signs in with a client secret.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use uuid::Uuid;
use wrapdisk::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};
use wrapdisk::secret::Secret;
use wrapdisk::vault::azure::AzureVault;
use wrapdisk::vault::local::CredentialKind;
use wrapdisk::vault::{Call, Credential, Endpoint, KeyInfo, KeyVault, SecretSource, VaultEntry, VaultError};

use super::{Admin, Local};
use crate::serve_support::Served;

/// A served vault, and whoever asks it over the network.
pub(crate) struct Elsewhere {
    local: Local,
    callers: Callers,
}

/// One provider an identity.
#[derive(Debug)]
struct Callers {
    served: Served,
    known: Mutex<HashMap<Uuid, Arc<AzureVault>>>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Served({})", self.port)
    }
}

impl Callers {
    fn entry(&self, client_id: &str, secret: &str) -> VaultEntry {
        use std::os::unix::fs::PermissionsExt;
        let file = self.served.home.path(&format!("{client_id}.secret"));
        std::fs::write(&file, secret).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        VaultEntry {
            id: Uuid::new_v4(),
            name: "served".into(),
            endpoint: Endpoint::parse(&format!("https://127.0.0.1:{}", self.served.port)).unwrap(),
            aliases: vec![format!("{}.vault.localhost", self.served.vault.id())],
            credential: Credential::ClientSecret {
                tenant: "local".into(),
                client_id: client_id.into(),
                secret: SecretSource::File(file),
            },
            ca_file: Some(self.served.home.path("ca.pem")),
            authority: None,
            local_server: true,
            created: 0,
        }
    }

    fn of(&self, call: &Call) -> Arc<AzureVault> {
        let mut known = self.known.lock().unwrap();
        let stranger = || {
            let entry = self.entry(&call.identity.to_string(), "a-secret-that-nobody-ever-was-given-here");
            Arc::new(AzureVault::new(entry))
        };
        known.entry(call.identity).or_insert_with(stranger).clone()
    }
}

impl KeyVault for Callers {
    fn describe(&self, key: &KeyRef, call: &Call) -> Result<KeyInfo, VaultError> {
        self.of(call).describe(key, call)
    }
    fn wrap(&self, kid: &Kid, alg: WrapAlg, dek: &Secret<64>, call: &Call) -> Result<WrappedDek, VaultError> {
        self.of(call).wrap(kid, alg, dek, call)
    }
    fn unwrap(&self, wrapped: &WrappedDek, call: &Call) -> Result<Secret<64>, VaultError> {
        self.of(call).unwrap(wrapped, call)
    }
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let served = Served::new();
        let local = Local::over(&served.home.path("home/state"));
        Self { local, callers: Callers { served, known: Mutex::default() } }
    }
}

impl Admin for Elsewhere {
    fn vault(&self) -> &dyn KeyVault {
        &self.callers
    }
    fn new_version(&self, name: &str) -> KeyInfo {
        self.local.new_version(name)
    }
    fn set_enabled(&self, kid: &Kid, enabled: bool) {
        self.local.set_enabled(kid, enabled);
    }
    fn set_window(&self, kid: &Kid, not_before: Option<i64>, expires: Option<i64>) {
        self.local.set_window(kid, not_before, expires);
    }
    fn allow_only(&self, kid: &Kid, operations: &str) {
        self.local.allow_only(kid, operations);
    }
    fn identity(&self, grant: Option<Option<&str>>) -> Call {
        let call = self.local.identity(grant);
        let (vault, admin) = (&self.local.vault, self.local.admin());
        let secret =
            vault.add_credential(call.identity, CredentialKind::ClientSecret, None, None, &admin).unwrap();
        let secret = std::str::from_utf8(secret.expose()).unwrap();
        let client_id = vault.find_identity(&call.identity.to_string(), &admin).unwrap().client_id;
        let provider = AzureVault::new(self.callers.entry(&client_id.to_string(), secret));
        self.callers.known.lock().unwrap().insert(call.identity, Arc::new(provider));
        call
    }
    fn set_identity_enabled(&self, call: &Call, enabled: bool) {
        self.local.set_identity_enabled(call, enabled);
    }
    fn last_record(&self) -> (u64, String, u64) {
        self.local.last_record()
    }
    fn words(&self, call: &Call) -> [String; 2] {
        let identity =
            self.local.vault.find_identity(&call.identity.to_string(), &self.local.admin()).unwrap();
        [format!("application {}", identity.client_id), "vault \"served\" at https://127.0.0.1:".to_owned()]
    }
    fn is_unknown_caller(&self, e: &VaultError) -> bool {
        matches!(e, VaultError::Auth(_))
    }
    fn record_of_unknown_caller(&self) -> (&'static str, u64) {
        ("Authentication", 401)
    }
}
