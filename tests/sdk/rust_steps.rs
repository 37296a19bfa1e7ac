//! What the Rust suite does, step by step; the names are those of the other suites.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use azure_core::time::{Duration, OffsetDateTime};
use azure_security_keyvault_keys::ResourceExt;
use azure_security_keyvault_keys::models::{
    CreateKeyParameters, EncryptionAlgorithm, GetRandomBytesParameters, KeyAttributes,
    KeyClientGetKeyOptions, KeyClientListDeletedKeyPropertiesOptions, KeyClientListKeyPropertiesOptions,
    KeyClientSignOptions, KeyOperation, KeyRotationPolicy, KeyRotationPolicyAction,
    KeyRotationPolicyAttributes, KeyType, LifetimeAction, LifetimeActionTrigger, LifetimeActionType,
    ReleaseParameters, RestoreKeyParameters, SignParameters, SignatureAlgorithm,
    UpdateKeyPropertiesParameters, VerifyParameters,
};
use futures::TryStreamExt;

use crate::rust::{Junk, Result, Suite, parameters, refused};

const OAEP_256: EncryptionAlgorithm = EncryptionAlgorithm::RsaOaep256;
const DEK: [u8; 64] = [7; 64];

impl Suite {
    pub(crate) async fn run(&self, step: &str) -> Result<()> {
        match step {
            "create" => self.create().await,
            "import" => self.import().await,
            "get" => self.get().await,
            "challenge" => self.challenge().await,
            "list" => self.list().await,
            "versions" => self.versions().await,
            "update" => self.update().await,
            "wrap and unwrap" => self.wrap().await,
            "encrypt and decrypt" => self.encrypt().await,
            "sign and verify" => self.sign().await,
            "disable" => self.disable().await,
            "rotate" => self.rotate().await,
            "rotation policy" => self.rotation_policy().await,
            "expired" => self.expired().await,
            "not granted" => self.not_granted().await,
            "delete" => self.delete().await,
            "recover" => self.recover().await,
            "purge" => self.purge().await,
            "backup and restore" => self.backup().await,
            "random bytes" => self.random().await,
            "not supported" => self.not_supported().await,
            "untrusted" => self.untrusted().await,
            other => panic!("no step {other}"),
        }
    }

    async fn create(&self) -> Result<()> {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("a time");
        let expires = now + Duration::days(30);
        let tags = HashMap::from([("env".to_owned(), "test".to_owned())]);
        let window = KeyAttributes {
            expires: Some(expires),
            not_before: Some(now - Duration::hours(1)),
            ..Default::default()
        };
        let new = CreateKeyParameters {
            kty: Some(KeyType::Rsa),
            key_size: Some(2048),
            key_attributes: Some(window),
            tags: Some(tags.clone()),
            ..Default::default()
        };
        let officer = self.keys("officer");
        let key = officer.create_key(&self.name("kek"), new.try_into()?, None).await?.into_model()?;
        let (jwk, attributes) =
            (key.key.clone().expect("a key"), key.attributes.clone().expect("attributes"));
        assert_eq!((jwk.kty, jwk.e), (Some(KeyType::Rsa), Some(vec![1, 0, 1])));
        assert_eq!((jwk.n.map(|n| n.len()), jwk.key_ops.map(|o| o.len())), (Some(256), Some(6)));
        assert_eq!((attributes.enabled, attributes.expires), (Some(true), Some(expires)));
        assert_eq!(attributes.recovery_level.expect("a level").to_string(), "Recoverable+Purgeable");
        assert_eq!(key.tags, Some(tags));
        let operations = vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey];
        let big = CreateKeyParameters {
            kty: Some(KeyType::Rsa),
            key_size: Some(3072),
            key_ops: Some(operations),
            key_attributes: Some(KeyAttributes { enabled: Some(false), ..Default::default() }),
            ..Default::default()
        };
        let big = officer.create_key(&self.name("big"), big.try_into()?, None).await?.into_model()?;
        let jwk = big.key.expect("a key");
        assert_eq!(jwk.n.map(|n| n.len()), Some(384));
        assert_eq!(jwk.key_ops, Some(vec!["wrapKey".to_owned(), "unwrapKey".to_owned()]));
        assert_eq!(big.attributes.and_then(|a| a.enabled), Some(false));
        Ok(())
    }

    async fn import(&self) -> Result<()> {
        let key = self.take(&self.name("mine")).await?;
        let jwk = key.key.clone().expect("a key");
        assert_eq!((jwk.n, jwk.d), (self.jwk().key.expect("ours").n, None));
        let worker = self.keys("worker");
        let wrapped = self.wrap_with(&worker, &self.name("mine"), &OAEP_256, &DEK).await?;
        assert_eq!(self.unwrap_with(&worker, &key, &OAEP_256, &wrapped).await?, DEK);
        Ok(())
    }

    async fn get(&self) -> Result<()> {
        let officer = self.keys("officer");
        let latest = self.latest(&self.name("kek")).await?;
        let id = latest.resource_id()?;
        assert!(id.source_id.starts_with(&format!("{}/keys/", self.plan.url)), "{id:?}");
        let at = |version: &str| KeyClientGetKeyOptions {
            key_version: Some(version.to_owned()),
            ..Default::default()
        };
        let version = at(&id.version.expect("a version"));
        let again = officer.get_key(&id.name, Some(version)).await?.into_model()?;
        assert_eq!(again.resource_id()?.source_id, id.source_id);
        refused(officer.get_key(&self.name("none"), None).await, 404, "KeyNotFound", None);
        refused(officer.get_key(&id.name, Some(at(&"0".repeat(32)))).await, 404, "KeyNotFound", None);
        Ok(())
    }

    async fn challenge(&self) -> Result<()> {
        let name = self.name("kek");
        self.keys("officer").get_key(&name, None).await?;
        assert_eq!(self.count("GET", &format!("/keys/{name}/"), 401), 1, "no challenge first");
        refused(self.client(Arc::new(Junk)).get_key(&name, None).await, 401, "Unauthorized", None);
        Ok(())
    }

    async fn list(&self) -> Result<()> {
        let many: BTreeSet<String> = (0..26).map(|n| self.name(&format!("page-{n}"))).collect();
        for name in &many {
            self.take(name).await?;
        }
        let officer = self.keys("officer");
        for (maxresults, least) in [(None, 2), (Some(10), 3)] {
            let options = KeyClientListKeyPropertiesOptions { maxresults, ..Default::default() };
            let mut pages = std::pin::pin!(officer.list_key_properties(Some(options))?.into_pages());
            let (mut found, mut count) = (Vec::new(), 0);
            while let Some(page) = pages.try_next().await? {
                let keys = page.into_model()?.value;
                assert!(keys.len() <= usize::try_from(maxresults.unwrap_or(25)).expect("positive"));
                count += 1;
                for key in keys {
                    found.push(key.resource_id()?.name);
                }
            }
            let once: BTreeSet<String> = found.iter().cloned().collect();
            assert!(once.len() == found.len() && many.is_subset(&once) && count >= least, "{count} pages");
        }
        Ok(())
    }

    async fn versions(&self) -> Result<()> {
        let name = self.name("versions");
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(self.make(&name).await?.resource_id()?.version.expect("a version"));
        }
        let (listed, pages) = self.version_list(Some(1)).await?;
        assert!(listed == made && pages >= 3, "{pages} pages");
        assert_eq!(self.latest(&name).await?.resource_id()?.version.as_ref(), made.last());
        Ok(())
    }

    async fn update(&self) -> Result<()> {
        let name = self.name("kek");
        let old = self.latest(&name).await?;
        let tags = Some(HashMap::from([("env".to_owned(), "prod".to_owned())]));
        let new = UpdateKeyPropertiesParameters { tags: tags.clone(), ..Default::default() };
        let new = self.change(&name, new).await?;
        assert_eq!(new.resource_id()?.source_id, old.resource_id()?.source_id);
        assert_eq!(new.tags, tags);
        let expires = |key: &azure_security_keyvault_keys::models::Key| key.attributes.as_ref()?.expires;
        assert_eq!(expires(&new), expires(&old));
        let operations = Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]);
        let fewer = UpdateKeyPropertiesParameters { key_ops: operations, ..Default::default() };
        let fewer = self.change(&name, fewer).await?;
        assert_eq!(fewer.tags, tags);
        let operations = fewer.key.as_ref().and_then(|k| k.key_ops.clone());
        assert_eq!(operations, Some(vec!["wrapKey".to_owned(), "unwrapKey".to_owned()]));
        let body = parameters(&OAEP_256, &[0; 256]).try_into()?;
        let answer = self.keys("worker").decrypt(&name, "", body, None).await;
        refused(answer, 403, "Forbidden", Some("KeyOperationForbidden"));
        Ok(())
    }

    async fn wrap(&self) -> Result<()> {
        let (worker, name) = (self.keys("worker"), self.name("kek"));
        let key = self.latest(&name).await?;
        for alg in [OAEP_256, EncryptionAlgorithm::RsaOaep] {
            let wrapped = self.wrap_with(&worker, &name, &alg, &DEK).await?;
            assert_eq!(self.unwrap_with(&worker, &key, &alg, &wrapped).await?, DEK);
        }
        let garbage = self.unwrap_with(&worker, &key, &OAEP_256, &[5; 256]).await;
        refused(garbage, 400, "BadParameter", None);
        let old = self.wrap_with(&worker, &name, &EncryptionAlgorithm::Rsa1_5, &DEK).await;
        refused(old, 400, "BadParameter", None);
        Ok(())
    }

    async fn encrypt(&self) -> Result<()> {
        let (worker, name) = (self.keys("worker"), self.name("mine"));
        for alg in [OAEP_256, EncryptionAlgorithm::RsaOaep] {
            let body = parameters(&alg, b"a text").try_into()?;
            let hidden = worker.encrypt(&name, body, None).await?.into_model()?;
            let version = hidden.resource_id()?.version.expect("a version");
            let body = parameters(&alg, &hidden.result.expect("a value")).try_into()?;
            let plain = worker.decrypt(&name, &version, body, None).await?.into_model()?;
            assert_eq!(plain.result.as_deref(), Some(&b"a text"[..]));
        }
        Ok(())
    }

    async fn sign(&self) -> Result<()> {
        use SignatureAlgorithm::{Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        let (worker, name) = (self.keys("worker"), self.name("mine"));
        for (alg, length) in [(Ps256, 32), (Ps384, 48), (Ps512, 64), (Rs256, 32), (Rs384, 48), (Rs512, 64)] {
            let digest = vec![9; length];
            let body = SignParameters { algorithm: Some(alg.clone()), value: Some(digest.clone()) };
            let options = KeyClientSignOptions::default();
            let signed = worker.sign(&name, body.try_into()?, Some(options)).await?.into_model()?;
            let version = signed.resource_id()?.version.expect("a version");
            for (digest, valid) in [(digest, true), (vec![8; length], false)] {
                let body = VerifyParameters {
                    algorithm: Some(alg.clone()),
                    digest: Some(digest),
                    signature: signed.result.clone(),
                };
                let answer = worker.verify(&name, &version, body.try_into()?, None).await?.into_model()?;
                assert_eq!(answer.value, Some(valid), "{alg:?}");
            }
        }
        Ok(())
    }

    async fn disable(&self) -> Result<()> {
        let (worker, name) = (self.keys("worker"), self.name("mine"));
        let key = self.latest(&name).await?;
        let wrapped = self.wrap_with(&worker, &name, &OAEP_256, &DEK).await?;
        let off = self.switch(&name, false).await?;
        assert_eq!(off.attributes.and_then(|a| a.enabled), Some(false));
        let answer = self.unwrap_with(&worker, &key, &OAEP_256, &wrapped).await;
        refused(answer, 403, "Forbidden", Some("KeyDisabled"));
        let answer = self.wrap_with(&worker, &name, &OAEP_256, &DEK).await;
        refused(answer, 403, "Forbidden", Some("KeyDisabled"));
        assert_eq!(self.latest(&name).await?.attributes.and_then(|a| a.enabled), Some(false));
        self.switch(&name, true).await?;
        assert_eq!(self.unwrap_with(&worker, &key, &OAEP_256, &wrapped).await?, DEK);
        Ok(())
    }

    async fn rotate(&self) -> Result<()> {
        let name = self.name("versions");
        let old = self.latest(&name).await?;
        let new = self.keys("officer").rotate_key(&name, None).await?.into_model()?;
        let modulus = |key: &azure_security_keyvault_keys::models::Key| key.key.as_ref()?.n.clone();
        assert_ne!(modulus(&new), modulus(&old));
        assert_eq!(self.latest(&name).await?.resource_id()?.source_id, new.resource_id()?.source_id);
        Ok(())
    }

    async fn rotation_policy(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("versions"));
        let before = officer.get_key_rotation_policy(&name, None).await?.into_model()?;
        assert_eq!(actions(&before), [(KeyRotationPolicyAction::Notify, None, Some("P30D".to_owned()))]);
        assert_eq!(before.attributes.and_then(|a| a.expiry_time), None);
        let action = |what, after: Option<&str>, before: Option<&str>| LifetimeAction {
            action: Some(LifetimeActionType { type_prop: Some(what) }),
            trigger: Some(LifetimeActionTrigger {
                time_after_create: after.map(str::to_owned),
                time_before_expiry: before.map(str::to_owned),
            }),
        };
        let wanted = vec![
            action(KeyRotationPolicyAction::Rotate, Some("P2M"), None),
            action(KeyRotationPolicyAction::Notify, None, Some("P30D")),
        ];
        let policy = KeyRotationPolicy {
            attributes: Some(KeyRotationPolicyAttributes {
                expiry_time: Some("P90D".into()),
                ..Default::default()
            }),
            lifetime_actions: Some(wanted.clone()),
            ..Default::default()
        };
        let set = officer.update_key_rotation_policy(&name, policy.try_into()?, None).await?.into_model()?;
        let read = officer.get_key_rotation_policy(&name, None).await?.into_model()?;
        let expected = actions(&KeyRotationPolicy { lifetime_actions: Some(wanted), ..Default::default() });
        for policy in [set, read] {
            assert_eq!(actions(&policy), expected);
            assert!(policy.id.expect("an id").to_lowercase().ends_with("/rotationpolicy"));
            let attributes = policy.attributes.expect("attributes");
            assert_eq!(attributes.expiry_time.as_deref(), Some("P90D"));
            assert!(attributes.created.is_some() && attributes.updated.is_some());
        }
        let new = officer.rotate_key(&name, None).await?.into_model()?;
        let expires = new.attributes.and_then(|a| a.expires).expect("an expiry time");
        let days = (expires - OffsetDateTime::now_utc()).whole_hours();
        assert!((89 * 24..=90 * 24).contains(&days), "{days} h");
        Ok(())
    }

    async fn expired(&self) -> Result<()> {
        let (worker, name) = (self.keys("worker"), self.name("old"));
        let key = self.make(&name).await?;
        let wrapped = self.wrap_with(&worker, &name, &OAEP_256, &DEK).await?;
        let past = OffsetDateTime::now_utc() - Duration::days(1);
        let attributes = KeyAttributes { expires: Some(past), ..Default::default() };
        let change = UpdateKeyPropertiesParameters { key_attributes: Some(attributes), ..Default::default() };
        self.change(&name, change).await?;
        assert_eq!(self.unwrap_with(&worker, &key, &OAEP_256, &wrapped).await?, DEK);
        self.wrap_with(&worker, &name, &OAEP_256, &DEK).await.expect_err("an expired key wraps");
        assert_eq!(self.count("POST", "/wrapkey", 403), 1, "not on the server");
        Ok(())
    }

    async fn not_granted(&self) -> Result<()> {
        let (nobody, name) = (self.keys("nobody"), self.name("kek"));
        let no = Some("ForbiddenByPolicy");
        refused(nobody.get_key(&name, None).await, 403, "Forbidden", no);
        refused(nobody.get_key(&self.name("none"), None).await, 403, "Forbidden", no); // nor does it say what there is
        let new = CreateKeyParameters { kty: Some(KeyType::Rsa), ..Default::default() };
        refused(nobody.create_key(&name, new.try_into()?, None).await, 403, "Forbidden", no);
        let listed: Result<Vec<_>> = nobody.list_key_properties(None)?.try_collect().await;
        refused(listed, 403, "Forbidden", no);
        let key = self.latest(&name).await?;
        refused(self.unwrap_with(&nobody, &key, &OAEP_256, &[0; 256]).await, 403, "Forbidden", no);
        Ok(())
    }

    async fn delete(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("kek"));
        let key = self.latest(&name).await?;
        let gone = officer.delete_key(&name, None).await?.into_model()?;
        assert!(gone.recovery_id.expect("an id").ends_with(&format!("/deletedkeys/{name}")));
        let (deleted, purge) =
            (gone.deleted_date.expect("a date"), gone.scheduled_purge_date.expect("a date"));
        assert_eq!((purge - deleted).whole_days(), 90);
        let read = officer.get_deleted_key(&name, None).await?.into_model()?;
        assert_eq!(read.resource_id()?.source_id, key.resource_id()?.source_id);
        let options = KeyClientListDeletedKeyPropertiesOptions { maxresults: Some(1), ..Default::default() };
        let deleted: Vec<_> = officer.list_deleted_key_properties(Some(options))?.try_collect().await?;
        assert!(deleted.iter().any(|k| k.resource_id().is_ok_and(|id| id.name == name)));
        refused(officer.get_key(&name, None).await, 404, "KeyNotFound", None);
        let unwrapped = self.unwrap_with(&self.keys("worker"), &key, &OAEP_256, &[0; 256]).await;
        refused(unwrapped, 404, "KeyNotFound", None);
        refused(self.make(&name).await, 409, "Conflict", Some("ObjectIsDeletedButRecoverable"));
        refused(self.take(&name).await, 409, "Conflict", Some("ObjectIsDeletedButRecoverable"));
        Ok(())
    }

    async fn recover(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("kek"));
        officer.recover_deleted_key(&name, None).await?;
        assert_eq!(self.latest(&name).await?.attributes.and_then(|a| a.enabled), Some(true));
        refused(officer.get_deleted_key(&name, None).await, 404, "KeyNotFound", None);
        Ok(())
    }

    async fn purge(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("big"));
        officer.delete_key(&name, None).await?;
        officer.purge_deleted_key(&name, None).await?;
        refused(officer.get_deleted_key(&name, None).await, 404, "KeyNotFound", None);
        self.take(&name).await?; // the name is free again
        Ok(())
    }

    async fn backup(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("versions"));
        let blob = officer.backup_key(&name, None).await?.into_model()?.value;
        let (kept, _) = self.version_list(None).await?;
        let restore = |blob| RestoreKeyParameters { key_backup: blob };
        refused(officer.restore_key(restore(blob.clone()).try_into()?, None).await, 409, "Conflict", None);
        officer.delete_key(&name, None).await?;
        officer.purge_deleted_key(&name, None).await?;
        let restored = officer.restore_key(restore(blob).try_into()?, None).await?.into_model()?;
        assert_eq!(restored.resource_id()?.version.as_ref(), kept.last());
        assert_eq!(self.version_list(None).await?.0, kept);
        let garbage = restore(Some(b"not a backup".to_vec()));
        refused(officer.restore_key(garbage.try_into()?, None).await, 400, "Malformed backup blob", None);
        Ok(())
    }

    async fn random(&self) -> Result<()> {
        let worker = self.keys("worker");
        let mut seen = BTreeSet::new();
        for _ in 0..2 {
            let body = GetRandomBytesParameters { count: Some(32) };
            let answer = worker.get_random_bytes(body.try_into()?, None).await?.into_model()?;
            seen.insert(answer.value.filter(|v| v.len() == 32).expect("32 bytes"));
        }
        assert_eq!(seen.len(), 2);
        Ok(())
    }

    async fn not_supported(&self) -> Result<()> {
        let (officer, name) = (self.keys("officer"), self.name("kek"));
        for (kty, key_size) in [(KeyType::Ec, None), (KeyType::RsaHsm, None), (KeyType::Rsa, Some(1024))] {
            let new = CreateKeyParameters { kty: Some(kty), key_size, ..Default::default() };
            let answer = officer.create_key(&self.name("no"), new.try_into()?, None).await;
            refused(answer, 400, "BadParameter", None);
        }
        let body =
            ReleaseParameters { target_attestation_token: Some("a token".into()), ..Default::default() };
        refused(officer.release(&name, body.try_into()?, None).await, 400, "BadParameter", None);
        refused(officer.get_key_attestation(&name, None).await, 400, "BadParameter", None);
        Ok(())
    }

    /// Without our CA the SDK must not talk to the vault at all.
    async fn untrusted(&self) -> Result<()> {
        let error = self.keys("officer").get_key("any", None).await.expect_err("it trusts anybody");
        assert!(format!("{error:?}").to_lowercase().contains("certificate"), "{error:?}");
        Ok(())
    }
}

type Action = (KeyRotationPolicyAction, Option<String>, Option<String>);

fn actions(policy: &KeyRotationPolicy) -> Vec<Action> {
    let of = |action: &LifetimeAction| {
        let trigger = action.trigger.clone().expect("a trigger");
        let what = action.action.clone().and_then(|a| a.type_prop).expect("an action");
        (what, trigger.time_after_create, trigger.time_before_expiry)
    };
    policy.lifetime_actions.iter().flatten().map(of).collect()
}
