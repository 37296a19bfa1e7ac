//! Operations with keys of the embedded vault: encrypt, decrypt, wrap, unwrap, sign, verify.
//!
//! Must never see: disks, containers.
//!
//! Invariants:
//! 1. Check order (KEY-VAULT section 2): permission, parameters, existence, enabled, key_ops, time window, operation.
//! 2. A data key is wrapped with the public half of the sealed private key, never with the row's `n` and `e`: an edited
//!    row cannot make us wrap under somebody else's key, and what was wrapped can be unwrapped.
//! 3. Outside its time window a key still decrypts, unwraps and verifies, as at Azure.
//! 4. RSA runs under no lock; the rows are checked again in the transaction that records it.

use super::authz::Permission;
use super::keys::{path_of, shown_ref};
use super::model::{CipherAlg, SignAlg};
use super::refusal::{Fail, transient};
use super::rows::Version;
use super::rsa::{self, Answer, CryptError, PrivateKey};
use super::work::{Task, Work};
use super::{LocalVault, now};
use crate::secret::{Secret, SecretBytes};
use crate::vault::{Call, KeyInfo, KeyOperation, KeyRef, KeyVault, Kid, VaultError, WrapAlg, WrappedDek};

impl LocalVault {
    /// Encrypt, Decrypt, WrapKey or UnwrapKey of whatever RSA-OAEP takes; without version: with the latest.
    ///
    /// # Errors
    /// 400 `BadParameter` (too long, or not decipherable: always the same words), 403, 404 `KeyNotFound`; broken.
    pub fn cipher(
        &self,
        op: KeyOperation,
        key: &KeyRef,
        alg: CipherAlg,
        data: &[u8],
        call: &Call,
    ) -> Result<(Kid, SecretBytes), Fail> {
        self.with_key(op, key, None, call, |der| match op {
            KeyOperation::Decrypt | KeyOperation::UnwrapKey => rsa::decrypt(der, alg, data),
            // They have methods of their own; nobody shall encrypt with the right to sign.
            KeyOperation::Sign | KeyOperation::Verify => Ok(Err(CryptError::Length)),
            KeyOperation::Encrypt | KeyOperation::WrapKey => {
                let encrypted = PrivateKey::from_pkcs8(der)?.encrypt(alg, data);
                Ok(encrypted.and_then(|mut b| SecretBytes::take(&mut b).map_err(|_| CryptError::NoRandom)))
            }
        })
    }

    /// Signs a digest of the algorithm's length.
    ///
    /// # Errors
    /// As [`LocalVault::cipher`].
    pub fn sign(
        &self,
        key: &KeyRef,
        alg: SignAlg,
        digest: &[u8],
        call: &Call,
    ) -> Result<(Kid, Vec<u8>), Fail> {
        let sign = |der: &SecretBytes| Ok(PrivateKey::from_pkcs8(der)?.sign(alg, digest));
        self.with_key(KeyOperation::Sign, key, None, call, sign)
    }

    /// Whether a signature is the key's. One that is not is an answer, not an error.
    ///
    /// # Errors
    /// As [`LocalVault::cipher`].
    pub fn verify(
        &self,
        key: &KeyRef,
        alg: SignAlg,
        digest: &[u8],
        signature: &[u8],
        call: &Call,
    ) -> Result<bool, Fail> {
        let verify = |der: &SecretBytes| Ok(PrivateKey::from_pkcs8(der)?.verify(alg, digest, signature));
        self.with_key(KeyOperation::Verify, key, None, call, verify).map(|(_, good)| good)
    }

    /// `host`: the kid's, where the caller has a whole one; it must be ours. `run` gets the private key as it was sealed;
    /// its outer error says that the key is damaged.
    fn with_key<T>(
        &self,
        op: KeyOperation,
        key: &KeyRef,
        host: Option<&Kid>,
        call: &Call,
        run: impl FnOnce(&SecretBytes) -> crate::error::Result<Answer<T>>,
    ) -> Result<(Kid, T), Fail> {
        let path = path_of(key);
        let (operation, permission, action) = words(op);
        let task = Task { operation, permission, path: &path, action };
        self.in_two_steps(
            task,
            call,
            |work| {
                if let Some(kid) = host {
                    work.check_host(kid)?;
                }
                let row = work.usable(key, op)?;
                // Here, where row and root key belong together: the root key may be another by the time of the labour.
                let der = row.unsealed(work.root, work.facts)?;
                Ok((row, der))
            },
            |(row, der)| Ok((row.version.clone(), run(der)?)),
            |work, (row, _), (version, done)| {
                let row = match row.version == version {
                    true => row,
                    // "The latest" is another one by now: what was used is what is checked, named and recorded.
                    false => work.usable(&KeyRef { name: row.name, version: Some(version) }, op)?,
                };
                let kid = row.kid(work.facts)?;
                match done {
                    Ok(value) => Ok((kid, value)),
                    Err(CryptError::Bad) => Err(work.refuse(|scene| scene.bad_ciphertext())),
                    Err(CryptError::Length) => Err(work.refuse(|scene| {
                        scene.bad_parameter(
                            "The value is invalid: its length is not one that the key and algorithm take.".into(),
                            "sign a digest of the algorithm's length, encrypt no more than the key's size allows",
                        )
                    })),
                    Err(CryptError::NoRandom) => {
                        Err(Fail::Broken(transient("use a key: no random numbers or no memory")))
                    }
                }
            },
        )
    }
}

impl KeyVault for LocalVault {
    fn describe(&self, key: &KeyRef, call: &Call) -> Result<KeyInfo, VaultError> {
        let path = path_of(key);
        let task = Task { operation: "KeyGet", permission: Permission::Get, path: &path, action: "" };
        let done = self.audited(task, call, |work| {
            work.require(Some(&key.name))?;
            work.check_ref(key)?;
            match work.find(&key.name, key.version.as_deref())? {
                Some(row) => row.info(work),
                None => Err(work.gone(key)?),
            }
        });
        Ok(done?)
    }

    fn wrap(&self, kid: &Kid, alg: WrapAlg, dek: &Secret<64>, call: &Call) -> Result<WrappedDek, VaultError> {
        let WrapAlg::RsaOaep256 = alg;
        let (kid, bytes) = self.with_key(KeyOperation::WrapKey, &kid.into(), Some(kid), call, |der| {
            Ok(PrivateKey::from_pkcs8(der)?.encrypt(CipherAlg::RsaOaep256, dek.expose()))
        })?;
        Ok(WrappedDek { kid, alg, bytes })
    }

    fn unwrap(&self, wrapped: &WrappedDek, call: &Call) -> Result<Secret<64>, VaultError> {
        let WrapAlg::RsaOaep256 = wrapped.alg;
        let kid = &wrapped.kid;
        let (_, dek) = self.with_key(KeyOperation::UnwrapKey, &kid.into(), Some(kid), call, |der| {
            let plain = rsa::decrypt(der, CipherAlg::RsaOaep256, &wrapped.bytes)?;
            // Another length is no data key, and nobody learns that it was the length.
            let dek = |mut plain: SecretBytes| Secret::take(plain.expose_mut()).ok().flatten();
            Ok(plain.and_then(|plain| dek(plain).ok_or(CryptError::Bad)))
        })?;
        Ok(dek)
    }
}

/// Azure's words for an operation: in the audit, the permission, the last part of the URL.
const fn words(op: KeyOperation) -> (&'static str, Permission, &'static str) {
    match op {
        KeyOperation::Encrypt => ("KeyEncrypt", Permission::Encrypt, "encrypt"),
        KeyOperation::Decrypt => ("KeyDecrypt", Permission::Decrypt, "decrypt"),
        KeyOperation::Sign => ("KeySign", Permission::Sign, "sign"),
        KeyOperation::Verify => ("KeyVerify", Permission::Verify, "verify"),
        KeyOperation::WrapKey => ("KeyWrap", Permission::WrapKey, "wrapkey"),
        KeyOperation::UnwrapKey => ("KeyUnwrap", Permission::UnwrapKey, "unwrapkey"),
    }
}

impl Work<'_> {
    fn check_host(&mut self, kid: &Kid) -> Result<(), Fail> {
        kid.as_str().clone_into(&mut self.subject);
        if self.facts.is_at(kid.host()) {
            return Ok(());
        }
        // Nothing of ours can leak, and "no permission" would send people to the wrong vault.
        Err(self.refuse(|scene| scene.wrong_vault(&self.facts.id)))
    }

    /// The version if the caller may now use it for this: the whole check order up to the operation.
    fn usable(&mut self, key: &KeyRef, op: KeyOperation) -> Result<Version, Fail> {
        self.require(Some(&key.name))?;
        self.check_ref(key)?;
        let Some(row) = self.find(&key.name, key.version.as_deref())? else {
            return Err(self.gone(key)?);
        };
        row.kid(self.facts)?.as_str().clone_into(&mut self.subject);
        self.bits = Some(row.bits);
        if !row.enabled {
            return Err(self.refuse(|scene| scene.disabled(&row.name, &row.version)));
        }
        if !row.operations()?.contains(&op) {
            return Err(self.refuse(|scene| scene.operation_forbidden()));
        }
        if matches!(op, KeyOperation::Encrypt | KeyOperation::WrapKey | KeyOperation::Sign) {
            self.in_window(&row)?;
        }
        Ok(row)
    }

    /// "Not found", and what would bring it back.
    fn gone(&self, key: &KeyRef) -> Result<Fail, Fail> {
        let deleted = self.find_deleted(&key.name)?.is_some();
        Ok(self.refuse(|scene| scene.deleted(&shown_ref(key), deleted.then_some(key.name.as_str()))))
    }

    fn in_window(&self, row: &Version) -> Result<(), Fail> {
        let now = now();
        if row.not_before.is_none_or(|t| t <= now) && row.expires.is_none_or(|t| now < t) {
            return Ok(());
        }
        let bound = |t: Option<i64>| {
            t.and_then(|t| jiff::Timestamp::from_second(t).ok()).map_or("ever".into(), |t| t.to_string())
        };
        let window = format!("from {} until {}", bound(row.not_before), bound(row.expires));
        Err(self.refuse(|scene| scene.expired(&window)))
    }
}
