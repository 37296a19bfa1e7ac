//! Queries and forms of the token endpoints.

use crate::secret::SecretBytes;

/// A form or a query, as far as it means something here. Unknown fields (`client_info`, `claims`) are ignored; of two of one
/// name the first counts.
#[derive(Debug, Default)]
pub struct Form {
    /// `api-version`.
    pub version: Option<String>,
    /// `resource`.
    pub resource: Option<String>,
    /// `client_id`, or how the managed identity endpoints call it.
    pub identity: Option<String>,
    /// `grant_type`.
    pub grant_type: Option<String>,
    /// `scope`.
    pub scope: Option<String>,
    /// `client_secret`.
    pub secret: Option<SecretBytes>,
}

impl Form {
    /// Never fails: what is missing is said by who needs it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut form = Self::default();
        for (name, value) in form_urlencoded::parse(text) {
            let slot = match &*name {
                "client_secret" if form.secret.is_none() => {
                    let mut value = value.into_owned().into_bytes();
                    form.secret = SecretBytes::take(&mut value).ok();
                    continue;
                }
                "api-version" => &mut form.version,
                "resource" => &mut form.resource,
                "client_id" | "principal_id" | "object_id" | "mi_res_id" | "msi_res_id" => &mut form.identity,
                "grant_type" => &mut form.grant_type,
                "scope" => &mut form.scope,
                _ => continue,
            };
            slot.get_or_insert_with(|| value.into_owned());
        }
        form
    }
}
