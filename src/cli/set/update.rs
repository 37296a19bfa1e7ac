//! `wrapdisk set update`: another key, another version, or following the latest.

use super::super::blast::{BlastRadius, StopArgs};
use super::super::context::{Context, now};
use super::super::policy::SetPolicyArgs;
use super::super::{output, usage};
use super::key::{self, Choice, KeyArgs, Place};
use super::rotate;
use crate::error::{Error, ErrorKind, Result};
use crate::set::access::Access;
use crate::set::rotation::{self, DEADLINE, Report};
use crate::set::{NextKey, Set, provision};
use crate::vault::Call;
use crate::vault::local::Role;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set update prod --key disk-kek2 --grant            another key of the embedded vault
  wrapdisk set update prod --key disk-kek/1d9aba4cc88ea2e058a6cc04fa7ef82f
  wrapdisk set update prod --key-url https://demo.vault.azure.net/keys/disk-kek
  wrapdisk set update prod --enable-auto-key-rotation true    follow the latest version
  wrapdisk set update prod --key disk-kek2 --dry-run          which disks, mounts and guests that concerns
  wrapdisk set update prod --on-revoke freeze --outage-grace 4h --recovery-mounts deny    for mounts from now on

The set's disks, snapshots and images are rewrapped at once: unwrapped with the key they are under, wrapped with the
new one. Where the old key is denied, that cannot be done: wrapdisk disk update DISK --set SET --passphrase gives a
disk that has a recovery passphrase the new key.")]
pub(in super::super) struct Update {
    /// The set
    name: String,

    #[command(flatten)]
    key: KeyArgs,

    /// Let the set's identity use the new key of the embedded vault
    #[arg(long)]
    grant: bool,

    #[command(flatten)]
    policy: SetPolicyArgs,

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Update) -> Result<u8> {
    let same_key = !args.key.is_named() && args.key.enable_auto_key_rotation.is_none();
    if same_key && !args.policy.any() {
        return Err(usage("set update: found nothing to change")
            .hint("give --key, --key-url, --enable-auto-key-rotation, or what is to happen when the key is taken away"));
    }
    let access = context.existing()?;
    if !agreed(context, &access, args)? {
        return Ok(0);
    }
    args.policy.apply(&access.sets, &access.sets.by_name(&args.name)?)?;
    let set = access.sets.by_name(&args.name)?;
    let report = match args.key.enable_auto_key_rotation {
        _ if same_key => Report::begun(set),
        Some(auto) if !args.key.is_named() => follow_or_stay(context, &access, &set, auto)?,
        _ => another_key(context, &access, &set, args)?,
    };
    crate::control::poke_all(&context.dirs);
    if args.output.json() {
        output::json(&super::to_json(&access.sets, &report.set)?)?;
    } else {
        rotate::tell(std::slice::from_ref(&report), args.output, true)?;
    }
    Ok(rotate::exit_code(&[report]))
}

/// Shows what another key concerns; what is said of the future concerns nothing that exists.
fn agreed(context: &Context, access: &Access, args: &Update) -> Result<bool> {
    let set = access.sets.by_name(&args.name)?;
    let radius = if args.key.is_named() {
        let choice = args.key.resolve(access)?;
        let call = access.vault.admin(&format!("set update {}", set.name));
        // A key elsewhere is looked at when it is proved.
        if matches!(choice.place, Place::Local) {
            key::look(access, &set.name, &choice.key, &call)?;
        }
        BlastRadius::of_another_key(context, access, &set)?
    } else {
        BlastRadius::of_the_future()
    };
    let question = format!("give {} another key", set.name);
    args.stop.agreed(&radius, &question, args.output.json())
}

fn follow_or_stay(context: &Context, access: &Access, set: &Set, auto: bool) -> Result<Report> {
    access.sets.set_pinned(set.id, !auto)?;
    let set = access.sets.by_name(&set.name)?;
    if auto {
        return rotation::run(access, &set, &rotate::mounts(context), &|_, _| {});
    }
    Ok(Report::begun(set))
}

fn another_key(context: &Context, access: &Access, set: &Set, args: &Update) -> Result<Report> {
    let choice = args.key.resolve(access)?;
    let next = match &choice.place {
        Place::Local => local(access, set, &choice, args.grant)?,
        Place::Elsewhere(entry) => {
            let call = Call::new(uuid::Uuid::nil(), format!("set update {}", set.name));
            let (info, identity) = key::check_elsewhere((**entry).clone(), &set.name, &choice.key, &call)?;
            NextKey { vault: entry.id, kid: info.kid, pinned: choice.pinned, identity, due: now() + DEADLINE }
        }
    };
    let began = access.sets.begin_rotation(set, &next, now())?;
    let set = began.ok_or_else(|| {
        Error::new(ErrorKind::Conflict, "its key was changed meanwhile")
            .on(&set.name)
            .hint("run the command again")
    })?;
    rotate::follow(context, access, set)
}

/// A key of the embedded vault. A set that comes from a vault elsewhere gets an identity here.
fn local(access: &Access, set: &Set, choice: &Choice, grant: bool) -> Result<NextKey> {
    let (name, vault) = (&set.name, &access.vault);
    let call = vault.admin(&format!("set update {name}"));
    let info = key::look(access, name, &choice.key, &call)?;
    let known = (set.vault == vault.id()).then_some(set.identity);
    let known =
        known.or_else(|| set.previous.iter().find(|old| old.vault == vault.id()).map(|old| old.identity));
    let identity = match known {
        Some(identity) => identity,
        None if grant => provision::identity(vault, &call)?,
        None => {
            return Err(usage(format!("{name} has no identity in the embedded vault yet"))
                .hint("give --grant: one is made, and may use the key"));
        }
    };
    let key_name = info.kid.name();
    if grant {
        vault.grant(identity, Role::CryptoServiceEncryptionUser, Some(key_name), &call)?;
    }
    let own = Call::new(identity, format!("set update {name}"));
    provision::prove(vault, name, &info.kid, &own).map_err(|e| match e.kind() {
        ErrorKind::Denied if !grant => {
            e.hint(format!("let the set use it: give --grant, or wrapdisk vault grant {identity} --role \"crypto service encryption user\" --key {key_name}"))
        }
        _ => e,
    })?;
    Ok(NextKey { vault: vault.id(), kid: info.kid, pinned: choice.pinned, identity, due: now() + DEADLINE })
}
