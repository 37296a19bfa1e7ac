//! Bodies of answers. Absent members are left out, never `null`, except `nextLink` and the attributes of a default policy;
//! every URL begins with the host that the client dialled.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Host, to_base64url};
use crate::vault::KeyInfo;
use crate::vault::local::RotationPolicy;

/// What the vault says about every key's recovery.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// `Recoverable+Purgeable` and its like.
    pub level: &'static str,
    /// Retention.
    pub days: u32,
}

#[derive(Serialize)]
struct Jwk {
    kid: String,
    kty: &'static str,
    key_ops: Vec<&'static str>,
    n: String,
    e: String,
}

#[derive(Serialize)]
struct Attributes {
    enabled: bool,
    key_size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    created: i64,
    updated: i64,
    #[serde(rename = "recoveryLevel")]
    level: &'static str,
    #[serde(rename = "recoverableDays")]
    days: u32,
    exportable: bool,
    /// Azure writes a string: "0" for a key that no HSM holds.
    #[serde(rename = "hsmPlatform")]
    hsm_platform: &'static str,
}

#[derive(Serialize)]
struct Item<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Jwk>,
    attributes: Attributes,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    deleted: Option<Deleted>,
}

#[derive(Serialize)]
struct Deleted {
    #[serde(rename = "recoveryId")]
    recovery_id: String,
    #[serde(rename = "deletedDate")]
    deleted: i64,
    #[serde(rename = "scheduledPurgeDate")]
    purge: i64,
}

/// When a key was deleted, and when it will be gone.
#[derive(Clone, Copy, Debug)]
pub struct Deletion {
    /// Unix seconds.
    pub deleted: i64,
    /// Unix seconds.
    pub scheduled_purge: i64,
}

/// What answers are made for.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// That the client dialled.
    pub host: &'a Host,
    /// Of the vault's keys.
    pub recovery: Recovery,
}

impl Frame<'_> {
    /// A key identifier as the client will dial it.
    #[must_use]
    pub fn kid(&self, name: &str, version: &str) -> String {
        format!("https://{}/keys/{name}/{version}", self.host.as_str())
    }

    /// A whole key.
    #[must_use]
    pub fn bundle(&self, key: &KeyInfo) -> Vec<u8> {
        json(&self.of(key, None))
    }

    /// A whole key that was deleted.
    #[must_use]
    pub fn deleted_bundle(&self, key: &KeyInfo, deletion: Deletion) -> Vec<u8> {
        json(&self.of(key, Some(deletion)))
    }

    fn of<'a>(&self, key: &'a KeyInfo, deletion: Option<Deletion>) -> Item<'a> {
        let jwk = Jwk {
            kid: self.kid(key.kid.name(), key.kid.version()),
            kty: "RSA",
            key_ops: key.operations.iter().map(|op| op.name()).collect(),
            n: to_base64url(&key.n),
            e: to_base64url(&key.e),
        };
        self.item(key, None, Some(jwk), deletion)
    }

    fn item<'a>(
        &self,
        info: &'a KeyInfo,
        kid: Option<String>,
        key: Option<Jwk>,
        deletion: Option<Deletion>,
    ) -> Item<'a> {
        Item {
            kid,
            key,
            attributes: Attributes {
                enabled: info.enabled,
                key_size: info.bits,
                nbf: info.not_before,
                exp: info.expires,
                created: info.created,
                updated: info.updated,
                level: self.recovery.level,
                days: self.recovery.days,
                exportable: false,
                hsm_platform: "0",
            },
            tags: &info.tags,
            deleted: deletion.map(|d| Deleted {
                recovery_id: format!("https://{}/deletedkeys/{}", self.host.as_str(), info.kid.name()),
                deleted: d.deleted,
                purge: d.scheduled_purge,
            }),
        }
    }

    /// One page of keys; `next` is the link to the one behind it.
    #[must_use]
    pub fn keys(&self, keys: &[KeyInfo], next: Option<String>) -> Vec<u8> {
        let kid = |k: &KeyInfo| format!("https://{}/keys/{}", self.host.as_str(), k.kid.name());
        list(keys.iter().map(|k| self.item(k, Some(kid(k)), None, None)).collect(), next)
    }

    /// One page of a key's versions.
    #[must_use]
    pub fn versions(&self, keys: &[KeyInfo], next: Option<String>) -> Vec<u8> {
        let kid = |k: &KeyInfo| self.kid(k.kid.name(), k.kid.version());
        list(keys.iter().map(|k| self.item(k, Some(kid(k)), None, None)).collect(), next)
    }

    /// One page of deleted keys.
    #[must_use]
    pub fn deleted_keys(&self, keys: &[(KeyInfo, Deletion)], next: Option<String>) -> Vec<u8> {
        let kid = |k: &KeyInfo| format!("https://{}/keys/{}", self.host.as_str(), k.kid.name());
        list(keys.iter().map(|(k, d)| self.item(k, Some(kid(k)), None, Some(*d))).collect(), next)
    }

    /// The result of an operation with a key.
    #[must_use]
    pub fn used(&self, name: &str, version: &str, value: &[u8]) -> Vec<u8> {
        #[derive(Serialize)]
        struct Used {
            kid: String,
            value: String,
        }
        json(&Used { kid: self.kid(name, version), value: to_base64url(value) })
    }

    /// A rotation policy. One that nobody set has at Azure no id and no attributes.
    #[must_use]
    pub fn policy(&self, name: &str, policy: &RotationPolicy) -> Vec<u8> {
        let mut body = policy.to_json();
        if policy.created.is_none() {
            body["attributes"] = serde_json::Value::Null;
            return json(&body);
        }
        body["id"] = format!("https://{}/keys/{name}/rotationpolicy", self.host.as_str()).into();
        json(&body)
    }
}

fn list(value: Vec<Item<'_>>, next: Option<String>) -> Vec<u8> {
    #[derive(Serialize)]
    struct List<'a> {
        value: Vec<Item<'a>>,
        #[serde(rename = "nextLink")]
        next: Option<String>,
    }
    json(&List { value, next })
}

/// A backup, or random bytes.
#[must_use]
pub fn value(bytes: &[u8]) -> Vec<u8> {
    json(&serde_json::json!({ "value": to_base64url(bytes) }))
}

/// The result of `verify`.
#[must_use]
pub fn verified(valid: bool) -> Vec<u8> {
    json(&serde_json::json!({ "value": valid }))
}

/// Azure's error.
#[must_use]
pub fn error(code: &str, message: &str, inner: Option<&str>) -> Vec<u8> {
    let mut error = serde_json::json!({ "code": code, "message": message });
    if let Some(inner) = inner {
        error["innererror"] = serde_json::json!({ "code": inner });
    }
    json(&serde_json::json!({ "error": error }))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default() // text and numbers: it cannot fail
}
