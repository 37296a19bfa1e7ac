//! `wrapdisk set create`: a set over a key in a vault elsewhere.

use super::super::context::{Context, now};
use super::super::{output, usage};
use crate::error::{Error, ErrorKind, Result};
use crate::set::provision::{self, KeyUrl};
use crate::set::{NewSet, SetStore};
use crate::vault::azure::AzureVault;
use crate::vault::{Call, VaultEntry};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set create prod --key-url https://demo.vault.azure.net/keys/disk-kek
  wrapdisk set create prod --key-url https://demo.vault.azure.net/keys/disk-kek --vault cloud
  wrapdisk create vm.wd --size 20G --set prod

The vault must be known: wrapdisk vault add. Its administrator must let the identity use the key (get,
wrapKey, unwrapKey); when he has not, the command for it is printed. A URL without version follows the
latest version, with one it stays there.")]
pub(in super::super) struct Create {
    /// 1 to 80 of A-Z a-z 0-9 . _ -
    name: String,

    /// https://HOST/keys/NAME[/VERSION]
    #[arg(long, value_name = "URL", value_parser = parse_key_url)]
    key_url: KeyUrl,

    /// The vault, where several entries ask the same host in different names
    #[arg(long, value_name = "NAME")]
    vault: Option<String>,

    #[command(flatten)]
    output: output::OutputArgs,
}

fn parse_key_url(text: &str) -> Result<KeyUrl, String> {
    KeyUrl::parse(text).map_err(|e| e.to_string())
}

pub(super) fn run(context: &Context, args: &Create) -> Result<()> {
    let sets = context.access()?.sets;
    let entry = vault_of(&sets, args)?;
    let vault = AzureVault::new(entry);
    let call = Call::new(uuid::Uuid::nil(), format!("set create {}", args.name));
    let info = provision::check(&vault, &args.name, &args.key_url.key, now(), &call)?;
    // Whom the vault knows us as; our own servers' tokens do not say it.
    let known = vault.claims().and_then(|claims| uuid::Uuid::parse_str(&claims.oid).ok());
    let set = sets.create(&NewSet {
        name: args.name.clone(),
        vault: vault.entry().id,
        key: info.kid.versionless().to_owned(),
        active: info.kid.clone(),
        pinned: args.key_url.key.version.is_some(),
        identity: known.unwrap_or_default(),
    })?;
    if args.output.json() {
        return output::json(&super::to_json(&sets, &set)?);
    }
    output::line(&format!("{}: made the set, key {}, as {}", set.name, set.active, vault.entry().credential))
}

/// The entry that is named, or the one for the key's host.
fn vault_of(sets: &SetStore, args: &Create) -> Result<VaultEntry> {
    let host = &args.key_url.host;
    if let Some(name) = &args.vault {
        let entry = sets.vault_by_name(name)?;
        if entry.knows_host(host) {
            return Ok(entry);
        }
        let message =
            format!("key URL: found the host {host}, allowed {} or an alias", entry.endpoint.host());
        return Err(Error::new(ErrorKind::InvalidInput, message).on(format!("vault \"{}\"", entry.name)));
    }
    let all = sets.vaults()?;
    let mut known = all.into_iter().filter(|entry| entry.knows_host(host));
    match (known.next(), known.next()) {
        (Some(entry), None) => Ok(entry),
        (Some(one), Some(other)) => Err(usage(format!(
            "{host} is both \"{}\" and \"{}\": say which with --vault",
            one.name, other.name
        ))),
        (None, _) => Err(Error::new(ErrorKind::NotFound, format!("no vault at {host} is known here"))
            .hint(format!("add it: wrapdisk vault add NAME https://{host}"))),
    }
}
