//! What a vault answered when all went well, checked: is it about the key that was asked for, and is it what it must be?
//!
//! Must never see: requests.

use azure_security_keyvault_keys::models::{Key, KeyOperationResult, KeyType};
use zeroize::Zeroize;

use super::super::{KeyInfo, KeyOperation, KeyRef, Kid, VaultError};
use super::errors::About;
use crate::secret::Secret;

/// RSA-4096.
const MAX_WRAPPED: usize = 512;

/// A key's public half and attributes, under the host by which containers know the vault.
pub(super) fn key_info(answer: Key, asked: &KeyRef, about: &About<'_>) -> Result<KeyInfo, VaultError> {
    let key = answer.key.ok_or_else(|| about.corrupt("the answer holds no key"))?;
    let found = key.kid.as_deref().and_then(|kid| Kid::parse(kid).ok());
    let ours = found.filter(|kid| {
        about.entry.knows_host(kid.host())
            && kid.name().eq_ignore_ascii_case(&asked.name)
            && asked.version.as_ref().is_none_or(|v| kid.version().eq_ignore_ascii_case(v))
    });
    let Some(kid) = ours else { return Err(wrong_kid(key.kid.as_deref(), about)) };
    let canonical = format!("https://{}/keys/{}/{}", about.entry.canonical_host(), kid.name(), kid.version());
    let kid = Kid::parse(&canonical).map_err(|e| about.corrupt(&e.to_string()))?;
    if !matches!(key.kty, Some(KeyType::Rsa | KeyType::RsaHsm)) {
        return Err(VaultError::Rejected {
            code: "BadParameter",
            message: about.message("the key's type cannot wrap", "allowed are RSA and RSA-HSM"),
        });
    }
    let (n, e) = (trimmed(key.n), trimmed(key.e));
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !matches!(bits, 2048 | 3072 | 4096) || e.is_empty() {
        let found = format!("RSA key size: found {bits} bits, allowed 2048, 3072 or 4096");
        return Err(VaultError::Rejected {
            code: "BadParameter",
            message: about.message(&found, "use another key"),
        });
    }
    let attributes = answer.attributes.ok_or_else(|| about.corrupt("the answer holds no attributes"))?;
    let unix = |time: Option<azure_core::time::OffsetDateTime>| time.map(|t| t.unix_timestamp());
    Ok(KeyInfo {
        kid,
        bits: u32::try_from(bits).unwrap_or(0),
        enabled: attributes
            .enabled
            .ok_or_else(|| about.corrupt("the answer does not say if the key is enabled"))?,
        not_before: unix(attributes.not_before),
        expires: unix(attributes.expires),
        created: unix(attributes.created).unwrap_or(0),
        updated: unix(attributes.updated).unwrap_or(0),
        // import and export are Azure's, and of no use here.
        operations: key
            .key_ops
            .unwrap_or_default()
            .iter()
            .filter_map(|op| KeyOperation::parse(op).ok())
            .collect(),
        tags: answer.tags.unwrap_or_default().into_iter().collect(),
        n,
        e,
    })
}

/// The ciphertext.
pub(super) fn wrapped(
    answer: KeyOperationResult,
    asked: &Kid,
    about: &About<'_>,
) -> Result<Vec<u8>, VaultError> {
    same_kid(answer.kid.as_deref(), asked, about)?;
    let bytes = answer.result.unwrap_or_default();
    if !matches!(bytes.len(), 256 | 384 | MAX_WRAPPED) {
        return Err(
            about.corrupt(&format!("wrapped key: found {} bytes, allowed 256, 384 or 512", bytes.len()))
        );
    }
    Ok(bytes)
}

/// The data key.
pub(super) fn unwrapped(
    mut answer: KeyOperationResult,
    asked: &Kid,
    about: &About<'_>,
) -> Result<Secret<64>, VaultError> {
    let mut bytes = answer.result.take().unwrap_or_default();
    let found = bytes.len();
    let checked = same_kid(answer.kid.as_deref(), asked, about);
    if checked.is_err() {
        bytes.zeroize();
    }
    checked?;
    let secret = Secret::take(&mut bytes).map_err(|e| about.unreachable(&e.chain()))?;
    secret.ok_or_else(|| about.corrupt(&format!("unwrapped key: found {found} bytes, allowed 64")))
}

fn same_kid(found: Option<&str>, asked: &Kid, about: &About<'_>) -> Result<(), VaultError> {
    let same = found.and_then(|kid| Kid::parse(kid).ok()).is_some_and(|kid| {
        about.entry.knows_host(kid.host())
            && kid.name().eq_ignore_ascii_case(asked.name())
            && kid.version().eq_ignore_ascii_case(asked.version())
    });
    if same { Ok(()) } else { Err(wrong_kid(found, about)) }
}

fn wrong_kid(found: Option<&str>, about: &About<'_>) -> VaultError {
    let shown: String = found.unwrap_or("none").chars().take(200).flat_map(char::escape_debug).collect();
    about.corrupt(&format!("the answer is about another key: found {shown}"))
}

/// Big-endian, without leading zeros.
fn trimmed(number: Option<Vec<u8>>) -> Vec<u8> {
    let number = number.unwrap_or_default();
    let zeros = number.iter().take_while(|b| **b == 0).count();
    number[zeros..].to_vec()
}
