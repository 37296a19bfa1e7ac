//! `wrapdisk vault identity ...` and `vault env`: who may ask the vault, and what he signs in with.
//!
//! Must never see: keys. A secret is printed once, when it was made.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli::blast::{BlastRadius, StopArgs};
use crate::cli::context::{Context, now};
use crate::cli::grant::describe;
use crate::cli::{output, prompt};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::SecretBytes;
use crate::vault::Call;
use crate::vault::local::{CredentialKind, Identity, IdentityKind, LocalVault};

/// Say who may ask the vault: sets, people, programs
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault identity add backup-agent --generate-secret
  wrapdisk vault grant backup-agent --permissions get,wrapKey,unwrapKey --key disk-kek
  wrapdisk vault identity list
  wrapdisk vault identity disable backup-agent")]
pub(in crate::cli) enum Command {
    /// Make an identity, without any grant
    Add(Add),
    /// List all identities
    #[command(after_long_help = "\
Examples:
  wrapdisk vault identity list
  wrapdisk vault identity list --output json | jq -r '.[] | select(.enabled) | .name'")]
    List(output::OutputArgs),
    /// Show an identity, its grants and its credentials
    Show(Show),
    /// Let an identity be used again
    #[command(after_long_help = "\
Examples:
  wrapdisk vault identity enable backup-agent")]
    Enable(Named),
    /// Refuse every call in an identity's name, from the next one on
    ///
    /// An emergency stop: on a terminal it says which disks it hits and asks, in a script it does as it is told.
    #[command(after_long_help = "\
Examples:
  wrapdisk vault identity disable backup-agent --dry-run    which disks, mounts and processes that would stop
  wrapdisk vault identity disable backup-agent
  wrapdisk vault identity disable set-0f8e7d6c-5b4a-4938-8271-605f4e3d2c1b --yes")]
    Disable(Disable),
    /// Remove an identity for good, with its grants and credentials
    #[command(after_long_help = "\
Examples:
  wrapdisk vault identity remove backup-agent --yes")]
    Remove(Remove),
    /// Add and remove what an identity signs in with
    #[command(subcommand)]
    Credential(Credential),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault identity add backup-agent                          grants and credentials come later
  wrapdisk vault identity add backup-agent --generate-secret        the secret is shown once
  wrapdisk vault identity add backup-agent --secret-file secret.txt --expires-days 90")]
pub(in crate::cli) struct Add {
    /// 1 to 127 letters, digits and dashes
    name: String,

    /// Make a client secret and print it, this once
    #[arg(long, conflicts_with = "secret_file")]
    generate_secret: bool,

    /// Take the client secret from FILE ("-": standard input)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// The secret expires after so many days [default: never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    expires_days: Option<u32>,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault identity show backup-agent
  wrapdisk vault identity show backup-agent --output json | jq .grants")]
pub(in crate::cli) struct Show {
    /// Name, client id or object id
    identity: String,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Named {
    /// Name, client id or object id
    identity: String,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Disable {
    /// Name, client id or object id
    identity: String,

    #[command(flatten)]
    stop: StopArgs,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Remove {
    /// Name, client id or object id
    identity: String,

    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Add and remove what an identity signs in with
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault identity credential add backup-agent
  wrapdisk vault identity credential remove backup-agent 3")]
pub(in crate::cli) enum Credential {
    /// Add a credential beside those there are; without a file it is generated and printed, this once
    Add(AddCredential),
    /// Remove a credential; tokens that it gave go on until they expire
    #[command(after_long_help = "\
Examples:
  wrapdisk vault identity show backup-agent              the numbers
  wrapdisk vault identity credential remove backup-agent 3")]
    Remove {
        /// Name, client id or object id
        identity: String,
        /// Its number, as `show` lists it
        id: i64,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault identity credential add backup-agent
  wrapdisk vault identity credential add backup-agent --kind identity-header
  pwgen -s 40 1 | wrapdisk vault identity credential add backup-agent --secret-file -")]
pub(in crate::cli) struct AddCredential {
    /// Name, client id or object id
    identity: String,

    /// client-secret, or identity-header (for the managed identity endpoint)
    #[arg(long, default_value = "client-secret", value_parser = parse_kind)]
    kind: CredentialKind,

    /// Take the secret from FILE ("-": standard input)
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,

    /// It expires after so many days [default: never]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    expires_days: Option<u32>,
}

fn parse_kind(text: &str) -> Result<CredentialKind, String> {
    CredentialKind::ALL
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| "allowed client-secret, identity-header".to_owned())
}

/// Write what a client needs to reach this vault: URL, CA, managed identity endpoint and its secret
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault env --identity backup-agent --ca ca.pem --out agent.env
  set -a; . ./agent.env; set +a; python3 agent.py       the Azure SDKs find everything there")]
pub(in crate::cli) struct Env {
    /// Name, client id or object id; it gets a new identity header
    #[arg(long, value_name = "IDENTITY")]
    identity: String,

    /// Where to write the lines NAME=VALUE; the file must not exist, and only you can read it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// The vault, as clients reach it
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:8443")]
    url: String,

    /// The managed identity endpoint of `vault serve --token-listen`
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8444/msi/token")]
    token_url: String,

    /// The CA's certificate, as `vault serve --ca-out` writes it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    let access = context.existing()?;
    let vault = &access.vault;
    let call = vault.admin("vault identity");
    match command {
        Command::Add(args) => add(vault, args, &call),
        Command::List(output) => list(vault, output.json(), &call),
        Command::Show(args) => show(vault, args, &call),
        Command::Enable(args) => {
            let identity = vault.find_identity(&args.identity, &call)?;
            Ok(vault.set_identity_enabled(identity.oid, true, &call)?)
        }
        Command::Disable(args) => {
            let identity = vault.find_identity(&args.identity, &call)?;
            let radius = BlastRadius::of_identity(context, &access, identity.oid)?;
            if !args.stop.agreed(&radius, &format!("Disable {}", identity.name), args.output.json())? {
                return Ok(());
            }
            Ok(vault.set_identity_enabled(identity.oid, false, &call)?)
        }
        Command::Remove(args) => {
            let identity = vault.find_identity(&args.identity, &call)?;
            if let Some(set) = access.sets.list()?.into_iter().find(|set| set.identity == identity.oid) {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("the identity is the set \"{}\"'s, and lives as long as that", set.name),
                )
                .on(&identity.name)
                .hint("to stop it: wrapdisk vault identity disable"));
            }
            prompt::confirm(&format!("Remove {} with its grants and credentials", identity.name), args.yes)?;
            Ok(vault.remove_identity(identity.oid, &call)?)
        }
        Command::Credential(Credential::Add(args)) => {
            let identity = vault.find_identity(&args.identity, &call)?;
            let given = args.secret_file.as_deref().map(prompt::passphrase_file).transpose()?;
            let secret = vault.add_credential(
                identity.oid,
                args.kind,
                given.as_ref(),
                end(args.expires_days),
                &call,
            )?;
            if given.is_none() {
                output::line(text(&secret)?)?;
            }
            Ok(())
        }
        Command::Credential(Credential::Remove { identity, id }) => {
            let identity = vault.find_identity(identity, &call)?;
            Ok(vault.remove_credential(identity.oid, *id, &call)?)
        }
    }
}

fn end(days: Option<u32>) -> Option<i64> {
    days.map(|days| now() + i64::from(days) * 86_400)
}

/// Generated secrets are base64url, given ones visible ASCII.
fn text(secret: &SecretBytes) -> Result<&str> {
    std::str::from_utf8(secret.expose()).map_err(|e| Error::new(ErrorKind::Other, "secret").caused_by(e))
}

fn add(vault: &LocalVault, args: &Add, call: &Call) -> Result<()> {
    if args.expires_days.is_some() && !args.generate_secret && args.secret_file.is_none() {
        return Err(crate::cli::usage("--expires-days: found no secret that could expire"));
    }
    // Read before anything is made.
    let given = args.secret_file.as_deref().map(prompt::passphrase_file).transpose()?;
    let oid = vault.create_identity(&args.name, IdentityKind::User, call)?;
    let secret = if args.generate_secret || given.is_some() {
        let kind = CredentialKind::ClientSecret;
        Some(vault.add_credential(oid, kind, given.as_ref(), end(args.expires_days), call)?)
    } else {
        None
    };
    let identity = vault.find_identity(&oid.to_string(), call)?;
    let shown = secret.filter(|_| args.generate_secret);
    if args.output.json() {
        let mut value = to_json(&identity);
        if let Some(secret) = &shown {
            value["clientSecret"] = text(secret)?.into();
        }
        return output::json(&value);
    }
    fields(&identity)?;
    if let Some(secret) = &shown {
        output::fields(&[("client secret", text(secret)?.to_owned())])?;
        output::note("This secret is not shown again.");
    }
    Ok(())
}

fn to_json(identity: &Identity) -> serde_json::Value {
    serde_json::json!({
        "name": identity.name,
        "objectId": identity.oid.to_string(),
        "clientId": identity.client_id.to_string(),
        "kind": identity.kind.name(),
        "enabled": identity.enabled,
        "created": output::time(identity.created),
    })
}

fn fields(identity: &Identity) -> Result<()> {
    output::fields(&[
        ("name", identity.name.clone()),
        ("object id", identity.oid.to_string()),
        ("client id", identity.client_id.to_string()),
        ("kind", identity.kind.name().to_owned()),
        ("enabled", if identity.enabled { "yes" } else { "no" }.to_owned()),
        ("created", output::time(identity.created)),
    ])
}

fn list(vault: &LocalVault, json: bool, call: &Call) -> Result<()> {
    let all = vault.identities(call)?;
    if json {
        return output::json(&all.iter().map(to_json).collect::<Vec<_>>());
    }
    let row = |i: &Identity| {
        let state = if i.enabled { "enabled" } else { "disabled" };
        vec![i.name.clone(), i.kind.name().to_owned(), state.to_owned(), i.oid.to_string()]
    };
    output::table(&["NAME", "KIND", "STATE", "OBJECT ID"], &all.iter().map(row).collect::<Vec<_>>())
}

fn show(vault: &LocalVault, args: &Show, call: &Call) -> Result<()> {
    let identity = vault.find_identity(&args.identity, call)?;
    let grants = vault.grants(identity.oid, call)?;
    let credentials = vault.credentials(identity.oid, call)?;
    let ends = |t: Option<i64>| t.map(output::time);
    if args.output.json() {
        let mut value = to_json(&identity);
        value["grants"] = grants.iter().map(|(grant, key)| describe(grant, key.as_deref())).collect();
        value["credentials"] = credentials
            .iter()
            .map(|c| {
                let (created, expires) = (output::time(c.created), ends(c.expires));
                serde_json::json!({ "id": c.id, "kind": c.kind.name(), "created": created, "expires": expires })
            })
            .collect();
        return output::json(&value);
    }
    fields(&identity)?;
    for (grant, key) in &grants {
        let on = key.as_ref().map_or("the vault".to_owned(), |key| format!("key {key}"));
        output::line(&format!("  granted: {grant} on {on}"))?;
    }
    for c in &credentials {
        let end = ends(c.expires).map_or(String::new(), |t| format!(", until {t}"));
        let (id, kind, since) = (c.id, c.kind.name(), output::time(c.created));
        output::line(&format!("  credential {id}: {kind} since {since}{end}"))?;
    }
    Ok(())
}

pub(super) fn env(context: &Context, args: &Env) -> Result<()> {
    let vault = context.existing()?.vault;
    let call = vault.admin("vault env");
    let identity = vault.find_identity(&args.identity, &call)?;
    let tenant = vault.settings()?.tenant_id;
    let ca = args.ca.as_deref().map(crate::cli::context::absolute).transpose()?;
    for text in [&args.url, &args.token_url] {
        let clean =
            text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\'' | b'"' | b'\\' | b'$' | b'`'));
        if !clean || !text.starts_with("http") {
            return Err(crate::cli::usage(format!("found \"{}\", allowed a URL", text.escape_debug())));
        }
    }
    // The file first: nobody would see the secret if it could not be written.
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.out)
        .io_at("make", &args.out)?;
    let made = vault
        .add_credential(identity.oid, CredentialKind::IdentityHeader, None, None, &call)
        .map_err(Error::from)
        .and_then(|secret| write_env(&mut file, args, ca.as_deref(), (tenant, &identity), &secret));
    if made.is_err() {
        let _ = std::fs::remove_file(&args.out);
    }
    made
}

fn write_env(
    file: &mut std::fs::File,
    args: &Env,
    ca: Option<&Path>,
    (tenant, identity): (uuid::Uuid, &Identity),
    header: &SecretBytes,
) -> Result<()> {
    let mut lines = SecretBytes::zeroed(8192)?;
    let mut rest = lines.expose_mut();
    let room = rest.len();
    let mut put =
        |name: &str, value: &[u8]| rest.write_all(&[name.as_bytes(), b"='", value, b"'\n"].concat());
    let mut all = || {
        put("KV_URL", args.url.as_bytes())?;
        put("IDENTITY_ENDPOINT", args.token_url.as_bytes())?;
        put("IDENTITY_HEADER", header.expose())?;
        put("AZURE_TENANT_ID", tenant.to_string().as_bytes())?;
        put("AZURE_CLIENT_ID", identity.client_id.to_string().as_bytes())?;
        if let Some(ca) = ca {
            for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
                put(name, ca.as_os_str().as_encoded_bytes())?;
            }
        }
        Ok(())
    };
    all().map_err(|e: std::io::Error| Error::io("write", e).at(&args.out))?;
    let left = rest.len();
    lines.truncate(room - left);
    file.write_all(lines.expose()).and_then(|()| file.sync_all()).io_at("write", &args.out)
}
