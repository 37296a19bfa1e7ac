//! What is asked of keys: a route and a body -> a call of the vault -> a body in Azure's words. Blocks.
//!
//! Must never see: sockets, tokens.
//!
//! Invariant: a request that is malformed is refused by the vault as well, which looks at the permission first and records
//! it; only then does the client learn what was wrong.

use super::reply::Reply;
use crate::envelope::KeyRef;
use crate::secret::SecretBytes;
use crate::vault::local::{
    CipherAlg, DeletedKey, Fail, ImportedKey, KeyAttributes, KeyUpdate, LocalVault, NewKey, Page, Permission,
    RotationPolicy, RsaBits, SignAlg, TurnedDown,
};
use crate::vault::wire::answer::{Deletion, Frame, Recovery};
use crate::vault::wire::body::{self, CreateKey, ImportKey, UpdateKey, UseKey, VerifyKey};
use crate::vault::wire::{Host, Malformed, Query, Route, answer};
use crate::vault::{Call, KeyInfo, KeyOperation};

/// A request whose sender is known.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) vault: &'a LocalVault,
    pub(super) host: &'a Host,
    pub(super) query: &'a Query,
    pub(super) body: &'a [u8],
    pub(super) call: &'a Call,
}

/// Why there is no answer.
enum No {
    Malformed(Malformed),
    Fail(Fail),
}

impl From<Malformed> for No {
    fn from(e: Malformed) -> Self {
        Self::Malformed(e)
    }
}

impl From<Fail> for No {
    fn from(e: Fail) -> Self {
        Self::Fail(e)
    }
}

/// Does what the route says.
pub(super) fn answer(asked: &Asked<'_>, route: &Route) -> Reply {
    let version = asked.query.api_version().map(drop).map_err(No::from);
    match version.and_then(|()| asked.run(route)) {
        Ok(reply) => reply,
        Err(No::Fail(fail)) => fail.into(),
        Err(No::Malformed(what)) => turn_down(asked.vault, route, TurnedDown::Malformed(what.0), asked.call),
    }
}

/// Refuses in the vault's name, so that it is on record.
pub(super) fn turn_down(vault: &LocalVault, route: &Route, why: TurnedDown, call: &Call) -> Reply {
    let (operation, permissions, name) = on_record(route);
    vault.turn_down(operation, permissions, name, why, call).into()
}

/// The audit's name of a route, what it needs (its own permission, and a general one that does as well), and of which key.
fn on_record(route: &Route) -> (&'static str, &'static [Permission], Option<&str>) {
    use Permission as P;
    let (operation, permissions, name): (_, &[P], Option<&String>) = match route {
        Route::Create(n) => ("KeyCreate", &[P::Create], Some(n)),
        Route::Import(n) => ("KeyImport", &[P::Import], Some(n)),
        Route::Get(k) => ("KeyGet", &[P::Get], Some(&k.name)),
        Route::Update(k) => ("KeyUpdate", &[P::Update], Some(&k.name)),
        Route::Delete(n) => ("KeyDelete", &[P::Delete], Some(n)),
        Route::List => ("KeyList", &[P::List], None),
        Route::ListVersions(n) => ("KeyListVersions", &[P::List], Some(n)),
        Route::Rotate(n) => ("KeyRotate", &[P::Rotate], Some(n)),
        Route::GetPolicy(n) => ("KeyRotationPolicyGet", &[P::GetRotationPolicy, P::Get], Some(n)),
        Route::SetPolicy(n) => ("KeyRotationPolicySet", &[P::SetRotationPolicy, P::Update], Some(n)),
        Route::Use(op, k) => {
            let (operation, permissions): (_, &[P]) = match op {
                KeyOperation::Encrypt => ("KeyEncrypt", &[P::Encrypt]),
                KeyOperation::Decrypt => ("KeyDecrypt", &[P::Decrypt]),
                KeyOperation::Sign => ("KeySign", &[P::Sign]),
                KeyOperation::Verify => ("KeyVerify", &[P::Verify]),
                KeyOperation::WrapKey => ("KeyWrap", &[P::WrapKey]),
                KeyOperation::UnwrapKey => ("KeyUnwrap", &[P::UnwrapKey]),
            };
            (operation, permissions, Some(&k.name))
        }
        Route::Backup(n) => ("KeyBackup", &[P::Backup], Some(n)),
        Route::Restore => ("KeyRestore", &[P::Restore], None),
        Route::GetDeleted(n) => ("KeyGetDeleted", &[P::Get], Some(n)),
        Route::ListDeleted => ("KeyListDeleted", &[P::List], None),
        Route::Recover(n) => ("KeyRecover", &[P::Recover], Some(n)),
        Route::Purge(n) => ("KeyPurge", &[P::Purge], Some(n)),
        Route::Random => ("RandomBytesGet", &[], None),
        Route::Unsupported(_) => ("KeyRelease", &[], None),
    };
    (operation, permissions, name.map(String::as_str))
}

impl Asked<'_> {
    fn run(&self, route: &Route) -> Result<Reply, No> {
        let (vault, call) = (self.vault, self.call);
        match route {
            Route::Create(name) => self.create(name),
            Route::Import(name) => self.import(name),
            Route::Get(key) => self.bundle(&vault.get_key(key, call)?),
            Route::Update(key) => self.update(key),
            Route::Delete(name) => self.deleted(&vault.delete_key(name, call)?),
            Route::List => self.list(|page| vault.list_keys(page, call), "/keys", |f, k, n| f.keys(k, n)),
            Route::ListVersions(name) => {
                let path = format!("/keys/{name}/versions");
                self.list(|page| vault.list_versions(name, page, call), &path, |f, k, n| f.versions(k, n))
            }
            Route::Rotate(name) => self.bundle(&vault.rotate_key(name, call)?),
            Route::GetPolicy(name) => self.policy(name, &vault.rotation_policy(name, call)?),
            Route::SetPolicy(name) => {
                let policy = RotationPolicy::from_json(self.body).map_err(|e| Malformed(e.to_string()))?;
                self.policy(name, &vault.set_rotation_policy(name, &policy, call)?)
            }
            Route::Use(KeyOperation::Sign, key) => self.sign(key),
            Route::Use(KeyOperation::Verify, key) => self.verify(key),
            Route::Use(operation, key) => self.cipher(*operation, key),
            Route::Backup(name) => Ok(Reply::ok(answer::value(&vault.backup_key(name, call)?))),
            Route::Restore => {
                let blob = body::restore(self.body)?;
                self.bundle(&vault.restore_key(blob.expose(), call)?)
            }
            Route::GetDeleted(name) => self.deleted(&vault.get_deleted_key(name, call)?),
            Route::ListDeleted => self.list_deleted(),
            Route::Recover(name) => self.bundle(&vault.recover_key(name, call)?),
            Route::Purge(name) => vault.purge_key(name, call).map(|()| Reply::nothing()).map_err(No::from),
            Route::Random => self.random(),
            Route::Unsupported(what) => {
                Err(Malformed(format!("{what} is not supported by this vault.")).into())
            }
        }
    }

    fn frame(&self) -> Result<Frame<'_>, No> {
        let settings = self.vault.settings()?;
        let recovery = Recovery { level: settings.recovery_level(), days: settings.retention_days };
        Ok(Frame { host: self.host, recovery })
    }

    fn bundle(&self, key: &KeyInfo) -> Result<Reply, No> {
        Ok(Reply::ok(self.frame()?.bundle(key)))
    }

    fn deleted(&self, key: &DeletedKey) -> Result<Reply, No> {
        Ok(Reply::ok(self.frame()?.deleted_bundle(&key.key, deletion(key))))
    }

    fn policy(&self, name: &str, policy: &RotationPolicy) -> Result<Reply, No> {
        Ok(Reply::ok(self.frame()?.policy(name, policy)))
    }

    fn create(&self, name: &str) -> Result<Reply, No> {
        let wanted = CreateKey::parse(self.body)?;
        let bits = match wanted.size {
            // Azure's default; the command line's is 3072.
            None => RsaBits::B2048,
            Some(bits) => RsaBits::try_from(bits)
                .map_err(|_| Malformed(format!("key_size: found {bits}, allowed 2048, 3072 and 4096.")))?,
        };
        let new = NewKey {
            bits,
            exponent: wanted.exponent.unwrap_or(65537),
            attributes: attributes(&wanted.attributes),
            operations: wanted.operations,
            tags: wanted.tags.unwrap_or_default(),
        };
        self.bundle(&self.vault.create_key(name, &new, self.call)?)
    }

    fn import(&self, name: &str) -> Result<Reply, No> {
        let wanted = ImportKey::parse(self.body)?;
        let material = ImportedKey::from_jwk(wanted.jwk)
            .map_err(|e| Malformed(format!("The key is not one that can be imported: {e}.")))?;
        let new = NewKey {
            attributes: attributes(&wanted.attributes),
            operations: wanted.operations,
            tags: wanted.tags.unwrap_or_default(),
            ..NewKey::default()
        };
        self.bundle(&self.vault.import_key(name, &material, &new, self.call)?)
    }

    fn update(&self, key: &KeyRef) -> Result<Reply, No> {
        let wanted = UpdateKey::parse(self.body)?;
        let change = KeyUpdate {
            enabled: wanted.attributes.enabled,
            not_before: wanted.attributes.not_before,
            expires: wanted.attributes.expires,
            operations: wanted.operations,
            tags: wanted.tags,
        };
        self.bundle(&self.vault.update_key(key, &change, self.call)?)
    }

    fn cipher(&self, operation: KeyOperation, key: &KeyRef) -> Result<Reply, No> {
        let wanted = UseKey::parse(self.body)?;
        let alg = CipherAlg::parse(&wanted.algorithm).map_err(|e| Malformed(e.to_string()))?;
        let (kid, value) = self.vault.cipher(operation, key, alg, wanted.value.expose(), self.call)?;
        Ok(Reply::ok(self.frame()?.used(kid.name(), kid.version(), value.expose())))
    }

    fn sign(&self, key: &KeyRef) -> Result<Reply, No> {
        let wanted = UseKey::parse(self.body)?;
        let alg = signature_of(&wanted.algorithm, wanted.value.len())?;
        let (kid, value) = self.vault.sign(key, alg, wanted.value.expose(), self.call)?;
        Ok(Reply::ok(self.frame()?.used(kid.name(), kid.version(), &value)))
    }

    fn verify(&self, key: &KeyRef) -> Result<Reply, No> {
        let wanted = VerifyKey::parse(self.body)?;
        let alg = signature_of(&wanted.algorithm, wanted.digest.len())?;
        let valid = self.vault.verify(key, alg, wanted.digest.expose(), wanted.value.expose(), self.call)?;
        Ok(Reply::ok(answer::verified(valid)))
    }

    fn random(&self) -> Result<Reply, No> {
        let count = body::random(self.body)?;
        let fail = |e: crate::error::Error| No::from(Fail::from(e));
        let mut bytes = SecretBytes::zeroed(count).map_err(fail)?;
        crate::secret::random(bytes.expose_mut()).map_err(fail)?;
        Ok(Reply::ok(answer::value(bytes.expose())))
    }

    fn list(
        &self,
        ask: impl FnOnce(&Page) -> Result<Vec<KeyInfo>, Fail>,
        path: &str,
        write: impl FnOnce(&Frame<'_>, &[KeyInfo], Option<String>) -> Vec<u8>,
    ) -> Result<Reply, No> {
        let (found, more) = self.page(ask)?;
        let last =
            found.last().map(|k| if path == "/keys" { k.kid.name() } else { k.kid.version() }.to_owned());
        let next = self.next(path, more.then_some(last).flatten())?;
        Ok(Reply::ok(write(&self.frame()?, &found, next)))
    }

    fn list_deleted(&self) -> Result<Reply, No> {
        let (found, more) = self.page(|page| self.vault.list_deleted_keys(page, self.call))?;
        let last = found.last().map(|d| d.key.kid.name().to_owned());
        let next = self.next("/deletedkeys", more.then_some(last).flatten())?;
        let found: Vec<_> = found.into_iter().map(|d| (deletion(&d), d.key)).map(|(d, k)| (k, d)).collect();
        Ok(Reply::ok(self.frame()?.deleted_keys(&found, next)))
    }

    /// One page, and whether there is another: one more than is shown is asked for.
    fn page<T>(&self, ask: impl FnOnce(&Page) -> Result<Vec<T>, Fail>) -> Result<(Vec<T>, bool), No> {
        let page = self.query.page()?;
        let mut found = ask(&Page { after: page.after, limit: Some(page.limit + 1) })?;
        let more = found.len() > page.limit;
        found.truncate(page.limit);
        Ok((found, more))
    }

    fn next(&self, path: &str, last: Option<String>) -> Result<Option<String>, No> {
        let link = last.map(|last| self.query.next(&last)).transpose()?;
        Ok(link.map(|link| format!("https://{}{path}{link}", self.host.as_str())))
    }
}

fn attributes(said: &body::Attributes) -> KeyAttributes {
    KeyAttributes {
        enabled: said.enabled.unwrap_or(true),
        not_before: said.not_before,
        expires: said.expires,
    }
}

fn deletion(key: &DeletedKey) -> Deletion {
    Deletion { deleted: key.deleted, scheduled_purge: key.scheduled_purge }
}

fn signature_of(algorithm: &str, digest: usize) -> Result<SignAlg, Malformed> {
    let alg = SignAlg::parse(algorithm).map_err(|e| Malformed(e.to_string()))?;
    if digest == alg.digest_len() {
        return Ok(alg);
    }
    Err(Malformed(format!(
        "Invalid length of digest: found {digest} bytes, allowed {} for {}.",
        alg.digest_len(),
        alg.name()
    )))
}
