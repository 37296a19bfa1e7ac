//! `wrapdisk vault add|list|test|remove`: the vaults elsewhere that disks of this machine may use.
//!
//! Must never see: a secret. It takes the names of the files that hold them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::context::Context;
use super::super::{output, usage};
use crate::error::{Error, Result};
use crate::keyring;
use crate::set::{LOCAL, NewVault, SetStore};
use crate::vault::azure::AzureVault;
use crate::vault::local::LocalVault;
use crate::vault::{
    Call, Credential, Denial, Endpoint, KeyRef, KeyVault, SecretSource, VaultEntry, VaultError,
};

/// A name that no key has: asking for it shows whether a vault can be reached and who we are to it.
const NO_KEY: &str = "wrapdisk-vault-test";

#[derive(Debug, clap::Subcommand)]
pub(in super::super) enum Command {
    /// Add a vault elsewhere: Azure Key Vault, Managed HSM, or another machine's vault serve
    Add(Add),
    /// List the vaults whose keys disks of this machine may use
    #[command(after_long_help = "\
Examples:
  wrapdisk vault list
  wrapdisk vault list --output json | jq -r '.[].endpoint'")]
    List(output::OutputArgs),
    /// Try a vault elsewhere, and say what is missing
    Test(Test),
    /// Take a vault elsewhere out again
    Remove(Remove),
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    match command {
        Command::Add(args) => add(context, args),
        Command::List(output) => list(context, *output),
        Command::Test(args) => test(context, args),
        Command::Remove(args) => remove(context, args),
    }
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault add cloud https://demo.vault.azure.net
  wrapdisk vault add cloud https://demo.vault.azure.net --credential client-secret \\
      --tenant TENANT  --client-id APP  --secret-file /etc/wrapdisk/cloud.secret
  wrapdisk vault add office https://vault.example:8443 --local-server --ca-file office-ca.pem \\
      --credential client-secret  --client-id NAME  --secret-file office.secret

Nothing is asked yet: see with wrapdisk vault test NAME. Only names of files are stored, no secret.
A managed identity needs no secret: it is the Azure machine's own (--client-id chooses one of several),
or comes with IDENTITY_ENDPOINT and IDENTITY_HEADER. HTTPS_PROXY and NO_PROXY count. A client certificate
is not supported: the SDK would need OpenSSL for it; use a client secret or a federated identity.")]
pub(in super::super) struct Add {
    /// 1 to 127 letters, digits and dashes
    name: String,

    /// https://HOST[:PORT] of an Azure Key Vault, a Managed HSM, or a wrapdisk vault serve
    #[arg(value_parser = parse_endpoint)]
    url: Endpoint,

    /// How to prove who we are
    #[arg(long, value_enum, default_value = "managed-identity", value_name = "KIND")]
    credential: Kind,

    /// The application, or one of several managed identities
    #[arg(long, value_name = "ID", required_if_eq("credential", "client-secret"))]
    client_id: Option<String>,

    /// The directory; a wrapdisk vault serve does not need it
    #[arg(long, value_name = "ID")]
    tenant: Option<String>,

    /// The client secret is in FILE, which only its owner can read
    #[arg(long, value_name = "FILE", conflicts_with = "secret_credential")]
    secret_file: Option<PathBuf>,

    /// The client secret is the systemd credential NAME of the service
    #[arg(long, value_name = "NAME")]
    secret_credential: Option<String>,

    /// Certificates (PEM) to trust: beside the system's, or instead of them with --local-server
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Another host that key identifiers may name; may be repeated
    #[arg(long = "alias", value_name = "HOST")]
    aliases: Vec<String>,

    /// Who issues tokens, where that is not Azure's public cloud: https://login.microsoftonline.us, ...
    #[arg(long, value_name = "URL", value_parser = parse_endpoint)]
    authority: Option<Endpoint>,

    /// It is a wrapdisk vault serve: its tokens may be for another host than the one that is asked
    #[arg(long)]
    local_server: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Of this Azure machine, or by IDENTITY_ENDPOINT
    ManagedIdentity,
    /// A federated token, as in Kubernetes
    WorkloadIdentity,
    /// An application's password
    ClientSecret,
    /// Whoever did az login
    AzureCli,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault remove cloud

The vault and its keys stay as they are. Refused while a set uses it.")]
pub(in super::super) struct Remove {
    /// The vault
    name: String,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault test cloud                  can it be reached, and does it know us?
  wrapdisk vault test cloud --key disk-kek   and may we use this key?

With --key a random value is wrapped and unwrapped again. What is missing is said in words, with the
command that mends it.")]
pub(in super::super) struct Test {
    /// The vault
    name: String,

    /// NAME (its latest version) or NAME/VERSION
    #[arg(long, value_parser = super::super::key::parse_key)]
    key: Option<KeyRef>,

    #[command(flatten)]
    output: output::OutputArgs,
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    Endpoint::parse(text).map_err(|e| e.to_string())
}

impl Add {
    fn credential(&self) -> Result<Credential> {
        let secret = match (&self.secret_file, &self.secret_credential) {
            (Some(file), _) => Some(SecretSource::File(absolute(file)?)),
            (None, Some(name)) => Some(SecretSource::SystemdCredential(name.clone())),
            (None, None) => None,
        };
        if secret.is_some() && self.credential != Kind::ClientSecret {
            return Err(usage("a secret is for --credential client-secret only"));
        }
        let (tenant, client_id) = (self.tenant.clone(), self.client_id.clone());
        Ok(match self.credential {
            Kind::ManagedIdentity => Credential::ManagedIdentity { client_id },
            Kind::WorkloadIdentity => Credential::WorkloadIdentity { tenant, client_id },
            Kind::AzureCli => Credential::AzureCli { tenant },
            // Our own server knows one directory only, whatever it is called.
            Kind::ClientSecret => {
                match (tenant.or_else(|| self.local_server.then(|| LOCAL.to_owned())), client_id, secret) {
                    (Some(tenant), Some(client_id), Some(secret)) => {
                        Credential::ClientSecret { tenant, client_id, secret }
                    }
                    _ => {
                        return Err(usage(
                            "client-secret: give --tenant, --client-id, and --secret-file or --secret-credential",
                        ));
                    }
                }
            }
        })
    }
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("resolve", e).at(path))
}

fn add(context: &Context, args: &Add) -> Result<()> {
    let new = NewVault {
        name: args.name.clone(),
        endpoint: args.url.clone(),
        aliases: args.aliases.clone(),
        credential: args.credential()?,
        ca_file: args.ca_file.as_deref().map(absolute).transpose()?,
        authority: args.authority.clone(),
        local_server: args.local_server,
    };
    AzureVault::check_files(&new.entry()?)?;
    let entry = SetStore::open(&context.dirs.state)?.add_vault(&new)?;
    if args.output.json() {
        return output::json(&to_json(&entry));
    }
    output::line(&format!("{}: added {}, asked as {}", entry.name, entry.endpoint, entry.credential))?;
    output::note(&format!("Nothing was asked yet: wrapdisk vault test {} --key KEY", entry.name));
    Ok(())
}

/// Those in `sets.db`, if there is one: looking must not make it.
fn known(context: &Context) -> Result<Option<SetStore>> {
    let there = context.dirs.state.join("sets.db").exists();
    there.then(|| SetStore::open(&context.dirs.state)).transpose()
}

fn entry(context: &Context, name: &str) -> Result<VaultEntry> {
    let sets = known(context)?.ok_or_else(|| {
        Error::new(crate::error::ErrorKind::NotFound, "no vault elsewhere is known here")
            .on(name)
            .hint("add it: wrapdisk vault add NAME https://HOST")
    })?;
    sets.vault_by_name(name)
}

fn list(context: &Context, output: output::OutputArgs) -> Result<()> {
    let entries = known(context)?.map(|sets| sets.vaults()).transpose()?.unwrap_or_default();
    let state = &context.dirs.state;
    // One that does not open now, for instance because its root key is under a passphrase, is there all the same.
    let local = LocalVault::exists(state).then(|| LocalVault::open(state).ok().map(|vault| vault.id()));
    if output.json() {
        let local = local.map(|id| {
            json!({ "name": LOCAL, "id": id.map(|id| id.to_string()), "endpoint": null,
                    "aliases": id.map(|id| format!("{id}.vault.localhost")).into_iter().collect::<Vec<_>>(),
                    "credential": null })
        });
        return output::json(&local.into_iter().chain(entries.iter().map(to_json)).collect::<Vec<_>>());
    }
    let mut rows = Vec::new();
    if local.is_some() {
        rows.push(vec![LOCAL.to_owned(), state.display().to_string(), "the owner of the files".to_owned()]);
    }
    for entry in &entries {
        rows.push(vec![entry.name.clone(), entry.endpoint.to_string(), entry.credential.to_string()]);
    }
    output::table(&["NAME", "WHERE", "ASKED AS"], &rows)
}

fn to_json(entry: &VaultEntry) -> Value {
    let credential = serde_json::to_value(&entry.credential).unwrap_or(Value::Null);
    json!({
        "name": entry.name,
        "id": entry.id.to_string(),
        "endpoint": entry.endpoint.url(),
        "aliases": entry.aliases,
        "credential": credential,
        "caFile": entry.ca_file,
        "authority": entry.authority.as_ref().map(Endpoint::url),
        "localServer": entry.local_server,
        "created": output::time(entry.created),
    })
}

fn remove(context: &Context, args: &Remove) -> Result<()> {
    if args.name.eq_ignore_ascii_case(LOCAL) {
        return Err(usage("local is the embedded vault: it cannot be removed"));
    }
    entry(context, &args.name)?;
    let entry = SetStore::open(&context.dirs.state)?.remove_vault(&args.name)?;
    output::line(&format!("{}: removed; {} itself was not touched", entry.name, entry.endpoint))
}

/// What was tried, and how it went.
struct Report {
    checks: Vec<(&'static str, Result<String, VaultError>)>,
}

impl Report {
    fn passed(&self) -> bool {
        self.checks.iter().all(|(_, outcome)| outcome.is_ok())
    }

    fn add(&mut self, check: &'static str, outcome: Result<String, VaultError>) {
        self.checks.push((check, outcome));
    }
}

fn test(context: &Context, args: &Test) -> Result<()> {
    if args.name.eq_ignore_ascii_case(LOCAL) {
        return Err(usage("local is the embedded vault: wrapdisk key list shows whether it works"));
    }
    let vault = AzureVault::new(entry(context, &args.name)?);
    let call = Call::new(uuid::Uuid::nil(), "vault test");
    let mut report = Report { checks: Vec::new() };
    match &args.key {
        Some(key) => try_key(&vault, key, &call, &mut report),
        None => report.add("reach", reach(&vault, &call)),
    }
    tell(&vault, &report, args.output)?;
    let failed = report.checks.into_iter().find_map(|(_, outcome)| outcome.err());
    failed.map_or(Ok(()), |e| Err(e.into()))
}

/// "No such key" and "you may not look" come from a vault that was reached and knows us.
fn reach(vault: &AzureVault, call: &Call) -> Result<String, VaultError> {
    let nobody = KeyRef { name: NO_KEY.to_owned(), version: None };
    match vault.describe(&nobody, call) {
        Ok(_) | Err(VaultError::Denied(Denial::Deleted, _)) => {
            Ok("it answers, knows us, and lets us look at keys".into())
        }
        Err(VaultError::Denied(Denial::NoPermission, _)) => {
            Ok("it answers and knows us; we may not look at all keys: test one with --key KEY".into())
        }
        Err(e) => Err(e),
    }
}

fn try_key(vault: &AzureVault, key: &KeyRef, call: &Call, report: &mut Report) {
    let info = match vault.describe(key, call) {
        Ok(info) => info,
        Err(e) => return report.add("get", Err(e)),
    };
    let state = if info.enabled { "enabled" } else { "disabled" };
    report.add("get", Ok(format!("{}, RSA-{}, {state}", info.kid, info.bits)));
    match keyring::prove(vault, &info.kid, call) {
        Ok(()) => {
            report.add("wrapKey", Ok("a random value was wrapped".into()));
            report.add("unwrapKey", Ok("and came back as it was".into()));
        }
        Err((keyring::Step::Wrap, e)) => report.add("wrapKey", Err(e)),
        Err((keyring::Step::Unwrap, e)) => {
            report.add("wrapKey", Ok("a random value was wrapped".into()));
            report.add("unwrapKey", Err(e));
        }
    }
}

fn tell(vault: &AzureVault, report: &Report, output: output::OutputArgs) -> Result<()> {
    let entry = vault.entry();
    let claims = vault.claims();
    if output.json() {
        let checks: Vec<Value> = report
            .checks
            .iter()
            .map(|(check, outcome)| match outcome {
                Ok(found) => json!({ "check": check, "ok": true, "found": found }),
                Err(e) => json!({ "check": check, "ok": false, "found": e.to_string() }),
            })
            .collect();
        return output::json(&json!({
            "name": entry.name,
            "endpoint": entry.endpoint.url(),
            "identity": entry.credential.to_string(),
            "objectId": claims.map(|c| c.oid),
            "ok": report.passed(),
            "checks": checks,
        }));
    }
    let oid =
        claims.filter(|c| !c.oid.is_empty()).map(|c| format!(", object id {}", c.oid)).unwrap_or_default();
    let mut lines = vec![
        ("vault", format!("{} at {}", entry.name, entry.endpoint)),
        ("identity", format!("{}{oid}", entry.credential)),
    ];
    for (check, outcome) in &report.checks {
        lines.push((
            check,
            match outcome {
                Ok(found) => format!("ok: {found}"),
                Err(_) => "FAILED".to_owned(),
            },
        ));
    }
    output::fields(&lines)
}
