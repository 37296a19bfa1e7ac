//! `wrapdisk audit ...`: who used which key when, and whether somebody changed that.
//!
//! Must never see: keys.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::context::Context;
use super::output;
use crate::error::{IoContext, Result};
use crate::vault::local::{AuditFilter, AuditResult, KeptHead, LocalVault};

/// See who used which key, and verify that nobody changed the records
#[derive(Debug, clap::Subcommand)]
#[command(after_long_help = "\
Examples:
  wrapdisk audit list --last 20
  wrapdisk audit list --result refused --since 2026-01-01
  wrapdisk audit head > /mnt/usb/audit.head
  wrapdisk audit verify --head /mnt/usb/audit.head")]
pub(super) enum Command {
    /// List records; with --output json one a line, in Azure's AuditEvent schema
    List(List),
    /// Verify the chain of records: any edit, cut or swap; against a head kept elsewhere also a rewritten chain
    ///
    /// Without --head it finds what somebody did who cannot read the root key.
    Verify(Verify),
    /// Print number and hash of the last record, to keep elsewhere
    #[command(after_long_help = "\
Examples:
  wrapdisk audit head > /mnt/usb/audit.head
  wrapdisk audit head | ssh log.example.com 'cat >> wrapdisk.heads'")]
    Head,
    /// Write records into a file, one JSON document a line
    Export(Export),
    /// Move the records up to a number into a file, which `verify --archive` reads
    Archive(Archive),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk audit list --last 20
  wrapdisk audit list --key disk-kek --operation KeyUnwrap --since 2026-11-24T03:00:00Z
  wrapdisk audit list --result refused --output json | jq -r .callerIpAddress")]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
struct Filter {
    /// Only this operation: KeyUnwrap, Authentication, VaultPatch, ...
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,

    /// Only calls in this identity's name: its name, client id or object id
    #[arg(long)]
    identity: Option<String>,

    /// Only what was about this key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// Only these outcomes: ok, refused, or an HTTP status
    #[arg(long, value_parser = parse_result)]
    result: Option<AuditResult>,

    /// Only from this time on: 2026-11-24, or 2026-11-24T03:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<i64>,

    /// Only before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<i64>,

    /// Only the last N of them
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

fn parse_result(text: &str) -> Result<AuditResult, String> {
    match (text, text.parse()) {
        ("ok", _) => Ok(AuditResult::Ok),
        ("refused", _) => Ok(AuditResult::Refused),
        (_, Ok(status @ 100..=599)) => Ok(AuditResult::Status(status)),
        _ => Err("allowed ok, refused, or a status such as 403".to_owned()),
    }
}

fn parse_time(text: &str) -> Result<i64, String> {
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    let time = whole.parse::<jiff::Timestamp>();
    time.map(jiff::Timestamp::as_second).map_err(|_| "allowed 2026-11-24 or 2026-11-24T03:00:00Z".to_owned())
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk audit verify
  wrapdisk audit verify --head /mnt/usb/audit.head
  wrapdisk audit verify --head 5d41402abc4b2a76b9719d911017c592ae2b1c6a0f7e8d3c4b5a697887766554
  wrapdisk audit verify --archive 2025.audit --archive 2026.audit --head audit.head")]
pub(super) struct Verify {
    /// A head that was kept elsewhere: a file that `audit head` wrote (its last line counts), or a hash
    #[arg(long, value_name = "FILE|HASH")]
    head: Option<String>,

    /// An archive of an earlier part; repeatable, oldest first
    #[arg(long, value_name = "FILE")]
    archive: Vec<PathBuf>,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk audit export --file audit.jsonl
  wrapdisk audit export --file denied.jsonl --result 403 --since 2026-11-01")]
pub(super) struct Export {
    /// The file, which must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk audit list --until 2026-01-01 --last 1        the number to archive up to
  wrapdisk audit archive --until-record 48213 --file 2025.audit")]
pub(super) struct Archive {
    /// The last record to move
    #[arg(long, value_name = "N")]
    until_record: u64,

    /// The file, which must not exist
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn run(context: &Context, command: &Command) -> Result<()> {
    let vault = context.existing()?.vault;
    match command {
        Command::List(args) => list(&vault, args),
        Command::Verify(args) => verify(&vault, args),
        Command::Head => output::line(&vault.audit_head()?.to_string()),
        Command::Export(args) => export(&vault, args),
        Command::Archive(args) => {
            let call = vault.admin("audit archive");
            let moved = vault.archive_audit(args.until_record, &args.file, &call)?;
            output::line(&format!("{}: {moved} records", args.file.display()))
        }
    }
}

impl Filter {
    fn filter(&self, vault: &LocalVault) -> Result<AuditFilter> {
        let identity = match &self.identity {
            // An oid may be nobody's by now, and its records are still there.
            Some(text) => match uuid::Uuid::try_parse(text) {
                Ok(oid) => Some(vault.find_identity(text, &vault.admin("audit list")).map_or(oid, |i| i.oid)),
                Err(_) => Some(vault.find_identity(text, &vault.admin("audit list"))?.oid),
            },
            None => None,
        };
        Ok(AuditFilter {
            after: 0,
            operation: self.operation.clone(),
            identity,
            key: self.key.clone(),
            result: self.result.clone(),
            since: self.since,
            until: self.until,
            last: self.last,
        })
    }
}

fn list(vault: &LocalVault, args: &List) -> Result<()> {
    let filter = args.filter.filter(vault)?;
    if args.output.json() {
        return vault.audit_each(&filter, |record| output::line(&record.json));
    }
    let columns = |cells: [&str; 6]| {
        let [seq, time, operation, status, who, what] = cells;
        output::line(
            format!("{seq:>8}  {time:<20}  {operation:<22}  {status:<6}  {who:<36}  {what}").trim_end(),
        )
    };
    columns(["RECORD", "TIME", "OPERATION", "STATUS", "IDENTITY", "WHAT"])?;
    vault.audit_each(&filter, |record| {
        let value = record.value();
        let text = |pointer: &str| value.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default();
        let status =
            value.pointer("/properties/httpStatusCode").map_or_else(String::new, ToString::to_string);
        let time = text("/time").get(..19).map_or_else(String::new, |t| format!("{t}Z"));
        columns([
            &record.seq.to_string(),
            &time,
            text("/operationName"),
            &status,
            text("/identity/claim/oid"),
            &what(text("/properties/id"), text("/properties/change")),
        ])
    })
}

/// What a record is about, for people: a change, or the key. What came from a caller is escaped.
fn what(id: &str, change: &str) -> String {
    let text = match (change, id.split_once(".vault.localhost/")) {
        ("", Some((_, path))) => path,
        ("", None) => id,
        (change, _) => change,
    };
    text.chars().flat_map(char::escape_debug).collect()
}

fn verify(vault: &LocalVault, args: &Verify) -> Result<()> {
    let kept = args.head.as_deref().map(kept).transpose()?;
    let archives: Vec<_> = args.archive.iter().map(PathBuf::as_path).collect();
    let head = vault.verify_audit_with(&archives, kept.as_ref())?;
    if args.output.json() {
        let value = serde_json::json!({ "seq": head.seq, "hash": head.hex(), "against": args.head });
        return output::json(&value);
    }
    output::line(&format!("the audit is whole up to record {}, {}", head.seq, head.hex()))?;
    if kept.is_none() {
        output::note(
            "Without --head this finds what somebody changed who cannot read the root key: keep `wrapdisk audit head` elsewhere.",
        );
    }
    Ok(())
}

fn kept(text: &str) -> Result<KeptHead> {
    let is_hash = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash {
        return KeptHead::parse(text);
    }
    let file = std::fs::File::open(text).io_at("open the kept head", text)?;
    let mut all = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, 1 << 20), &mut all)
        .io_at("read the kept head", text)?;
    let last = all.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    KeptHead::parse(last).map_err(|e| e.at(text))
}

fn export(vault: &LocalVault, args: &Export) -> Result<()> {
    let filter = args.filter.filter(vault)?;
    let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&args.file);
    let mut out = std::io::BufWriter::new(made.io_at("make", &args.file)?);
    let mut count = 0_u64;
    let written = vault
        .audit_each(&filter, |record| {
            count += 1;
            writeln!(out, "{}", record.json).io_at("write", &args.file)
        })
        .and_then(|()| out.flush().and_then(|()| out.get_ref().sync_all()).io_at("write", &args.file));
    match written {
        Ok(()) => output::line(&format!("{}: {count} records", args.file.display())),
        Err(e) => {
            let _ = std::fs::remove_file(&args.file);
            Err(e)
        }
    }
}
