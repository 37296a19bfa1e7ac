//! `vault update`: how long deleted keys stay.

use crate::cli::context::Context;
use crate::cli::{output, usage};
use crate::error::Result;

/// Say how long a deleted key can be had back, and that nobody may purge it sooner
///
/// A new retention counts for what is deleted from now on. Purge protection stays for good once it is on.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk vault update --retention-days 30
  wrapdisk vault update --enable-purge-protection")]
pub(in crate::cli) struct Update {
    /// 7 to 90; a new vault has 90
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(7..=90))]
    retention_days: Option<u32>,

    /// Deleted keys stay until their time has come; this cannot be taken back
    #[arg(long)]
    enable_purge_protection: bool,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Update) -> Result<()> {
    if args.retention_days.is_none() && !args.enable_purge_protection {
        return Err(usage("vault update: found nothing to change")
            .hint("give --retention-days or --enable-purge-protection"));
    }
    let vault = context.existing()?.vault;
    let protect = args.enable_purge_protection.then_some(true);
    let settings = vault.set_retention(args.retention_days, protect, &vault.admin("vault update"))?;
    if args.output.json() {
        return output::json(&serde_json::json!({
            "id": settings.id.to_string(),
            "name": settings.name,
            "tenantId": settings.tenant_id.to_string(),
            "location": settings.location,
            "softDeleteRetentionInDays": settings.retention_days,
            "enablePurgeProtection": settings.purge_protection,
        }));
    }
    output::fields(&[
        ("name", settings.name.clone()),
        ("retention", format!("{} days", settings.retention_days)),
        ("purge protection", if settings.purge_protection { "on" } else { "off" }.to_owned()),
    ])
}
