//! Keys as `az keyvault key` shows them (JSON), and as people read them.

use serde_json::{Value, json};

use crate::cli::output;
use crate::error::Result;
use crate::vault::KeyInfo;
use crate::vault::local::{DeletedKey, VaultSettings};

/// One key for programs: az's `key`, `attributes` and `tags`, and flat what scripts ask for most.
pub(super) fn to_json(info: &KeyInfo, settings: &VaultSettings) -> Value {
    let operations: Vec<_> = info.operations.iter().map(|op| op.name()).collect();
    json!({
        "name": info.kid.name(),
        "kid": info.kid.as_str(),
        "version": info.kid.version(),
        "kty": "RSA",
        "size": info.bits,
        "attributes": {
            "enabled": info.enabled,
            "created": output::time(info.created),
            "updated": output::time(info.updated),
            "notBefore": info.not_before.map(output::time),
            "expires": info.expires.map(output::time),
            "exportable": false,
            "recoverableDays": settings.retention_days,
            "recoveryLevel": settings.recovery_level(),
        },
        "key": {
            "kid": info.kid.as_str(),
            "kty": "RSA",
            "keyOps": operations,
            "n": base64(&info.n),
            "e": base64(&info.e),
        },
        "tags": info.tags,
    })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(super) fn show(info: &KeyInfo, settings: &VaultSettings, json: bool) -> Result<()> {
    if json { output::json(&to_json(info, settings)) } else { output::fields(&fields(info)) }
}

fn fields(info: &KeyInfo) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("name", info.kid.name().to_owned()),
        ("version", info.kid.version().to_owned()),
        ("kid", info.kid.to_string()),
        ("type", format!("RSA-{}", info.bits)),
        ("enabled", if info.enabled { "yes" } else { "no" }.to_owned()),
        ("operations", info.operations.iter().map(|op| op.name()).collect::<Vec<_>>().join(" ")),
        ("created", output::time(info.created)),
        ("updated", output::time(info.updated)),
    ];
    fields.extend(info.not_before.map(|t| ("not before", output::time(t))));
    fields.extend(info.expires.map(|t| ("expires", output::time(t))));
    if !info.tags.is_empty() {
        let tags: Vec<_> = info.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        fields.push(("tags", tags.join(" ")));
    }
    fields
}

pub(super) fn list(infos: &[KeyInfo], settings: &VaultSettings, json: bool) -> Result<()> {
    if json {
        return output::json(&infos.iter().map(|info| to_json(info, settings)).collect::<Vec<_>>());
    }
    let row = |i: &KeyInfo| {
        vec![
            i.kid.name().to_owned(),
            i.kid.version().to_owned(),
            format!("RSA-{}", i.bits),
            if i.enabled { "enabled" } else { "disabled" }.to_owned(),
            output::time(i.created),
        ]
    };
    output::table(
        &["NAME", "VERSION", "TYPE", "STATE", "CREATED"],
        &infos.iter().map(row).collect::<Vec<_>>(),
    )
}

fn deleted_to_json(deleted: &DeletedKey, settings: &VaultSettings) -> Value {
    let kid = &deleted.key.kid;
    let mut json = to_json(&deleted.key, settings);
    json["deletedDate"] = output::time(deleted.deleted).into();
    json["scheduledPurgeDate"] = output::time(deleted.scheduled_purge).into();
    json["recoveryId"] = format!("https://{}/deletedkeys/{}", kid.host(), kid.name()).into();
    json
}

pub(super) fn show_deleted(deleted: &DeletedKey, settings: &VaultSettings, json: bool) -> Result<()> {
    if json {
        return output::json(&deleted_to_json(deleted, settings));
    }
    let mut fields = fields(&deleted.key);
    fields.push(("deleted", output::time(deleted.deleted)));
    fields.push(("goes for good", output::time(deleted.scheduled_purge)));
    output::fields(&fields)
}

pub(super) fn list_deleted(deleted: &[DeletedKey], settings: &VaultSettings, json: bool) -> Result<()> {
    if json {
        return output::json(&deleted.iter().map(|d| deleted_to_json(d, settings)).collect::<Vec<_>>());
    }
    let row = |d: &DeletedKey| {
        vec![
            d.key.kid.name().to_owned(),
            format!("RSA-{}", d.key.bits),
            output::time(d.deleted),
            output::time(d.scheduled_purge),
        ]
    };
    output::table(&["NAME", "TYPE", "DELETED", "GOES FOR GOOD"], &deleted.iter().map(row).collect::<Vec<_>>())
}
