//! `wrapdisk set create`.

use super::super::context::Context;
use super::super::output;
use super::super::policy::SetPolicyArgs;
use super::key::{self, Choice, KeyArgs, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::set::access::Access;
use crate::set::{EncryptionType, NewSet, Set, provision};
use crate::vault::Call;
use crate::vault::local::Role;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set create prod --key disk-kek --grant           follows the latest version of disk-kek
  wrapdisk set create old --key disk-kek/1d9aba4cc88ea2e058a6cc04fa7ef82f
  wrapdisk set create cloud --key-url https://demo.vault.azure.net/keys/disk-kek --source-vault azure
  wrapdisk create vm.wd --size 20G --set prod

A set over the embedded vault gets an identity of its own, which may use no key until it is granted one: with
--grant, or by the vault's administrator (wrapdisk grant --set NAME). A vault elsewhere must be known (wrapdisk
vault add), and its administrator must let the identity use the key (get, wrapKey, unwrapKey). With a version in
--key or --key-url the set stays there, without it follows the latest one.")]
pub(in super::super) struct Create {
    /// 1 to 80 of A-Z a-z 0-9 . _ -
    name: String,

    #[command(flatten)]
    key: KeyArgs,

    /// Let the new identity use the key of the embedded vault
    #[arg(long)]
    grant: bool,

    /// EncryptionAtRestWithCustomerKey; Azure has two others, which are refused
    #[arg(long, value_name = "TYPE", hide_short_help = true)]
    encryption_type: Option<String>,

    #[command(flatten)]
    policy: SetPolicyArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Create) -> Result<()> {
    if let Some(text) = &args.encryption_type {
        text.parse::<EncryptionType>()?;
    }
    args.policy.check()?;
    let access = context.access()?;
    let choice = args.key.resolve(&access)?;
    let (set, asked_as) = match &choice.place {
        Place::Local => local(&access, args, &choice)?,
        Place::Elsewhere(entry) => {
            let call = Call::new(uuid::Uuid::nil(), format!("set create {}", args.name));
            let (info, identity) = key::check_elsewhere((**entry).clone(), &args.name, &choice.key, &call)?;
            let set = access.sets.create(&NewSet {
                name: args.name.clone(),
                vault: entry.id,
                key: info.kid.versionless().to_owned(),
                active: info.kid,
                pinned: choice.pinned,
                identity,
            })?;
            (set, entry.credential.to_string())
        }
    };
    args.policy.apply(&access.sets, &set)?;
    let set = access.sets.by_name(&set.name)?;
    if args.output.json() {
        return output::json(&super::to_json(&access.sets, &set)?);
    }
    output::line(&format!("{}: made the set, key {}, as {asked_as}", set.name, set.active))
}

/// Over the embedded vault: the identity is made with the set.
fn local(access: &Access, args: &Create, choice: &Choice) -> Result<(Set, String)> {
    let (name, vault) = (&args.name, &access.vault);
    if access.sets.list()?.iter().any(|set| set.name.eq_ignore_ascii_case(name)) {
        return Err(Error::new(ErrorKind::Exists, "a set of this name exists (case does not count)")
            .on(format!("set \"{name}\""))
            .hint("choose another name, or use that set: wrapdisk set show"));
    }
    let call = vault.admin(&format!("set create {name}"));
    let info = key::look(access, name, &choice.key, &call)?;
    let identity = provision::identity(vault, &call)?;
    let make = || -> Result<Set> {
        if args.grant {
            vault.grant(identity, Role::CryptoServiceEncryptionUser, Some(info.kid.name()), &call)?;
            let own = Call::new(identity, format!("set create {name}"));
            provision::prove(vault, name, &info.kid, &own)?;
        }
        access.sets.create(&NewSet {
            name: name.clone(),
            vault: vault.id(),
            key: info.kid.versionless().to_owned(),
            active: info.kid.clone(),
            pinned: choice.pinned,
            identity,
        })
    };
    let set = make().inspect_err(|_| {
        // It would stay behind without a set.
        if let Err(e) = vault.remove_identity(identity, &call) {
            log::warn!("identity {identity} is left over: {}", crate::vault::VaultError::from(e));
        }
    })?;
    if !args.grant {
        output::note(&format!(
            "Its identity {identity} may not use the key yet. The vault's administrator lets it: wrapdisk grant --set {name}"
        ));
    }
    Ok((set, identity.to_string()))
}
