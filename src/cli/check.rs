//! `wrapdisk check`.

use std::path::PathBuf;

use super::context::Context;
use super::{output, unlock};
use crate::control::json_path;
use crate::error::{Error, ErrorKind, Result};
use crate::luks2::Header;

/// Check a container: both header copies, the header's MAC, and that its wrapped keys open
///
/// Contents are not checked: XTS hides data, it does not authenticate it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk check vm.wd && echo good")]
pub(super) struct Args {
    /// Container, mountpoint or uuid
    disk: PathBuf,

    #[command(flatten)]
    output: output::OutputArgs,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    check: String,
    ok: bool,
    detail: String,
    #[serde(skip)]
    kind: ErrorKind,
}

impl Finding {
    fn of(check: impl Into<String>, result: Result<String>) -> Self {
        let check = check.into();
        match result {
            Ok(detail) => Self { check, ok: true, detail, kind: ErrorKind::Other },
            Err(e) => {
                let advice = e.advice().map(|hint| format!(" ({hint})")).unwrap_or_default();
                Self { check, ok: false, detail: e.chain() + &advice, kind: e.kind() }
            }
        }
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let path = context.container(&args.disk)?;
    let (_store, header) = unlock::load_shared(context, &path)?;
    let mut findings = vec![Finding::of("header copies", copies(&header))];
    for (id, token) in header.tokens() {
        let kid = token.wrapped().kid.to_string();
        findings.push(Finding::of(format!("token {id}: {kid}"), opens(context, &header, id, &path)));
    }
    if header.is_plain() {
        findings.push(Finding::of(
            "tokens",
            Ok("none: a plain LUKS2 container, whose header carries no MAC".to_owned()),
        ));
    }
    if args.output.json() {
        output::json(
            &serde_json::json!({ "disk": json_path::value(&path), "ok": findings.iter().all(|f| f.ok), "checks": findings }),
        )?;
    } else {
        for f in &findings {
            output::line(&format!("{}  {}: {}", if f.ok { "ok  " } else { "FAIL" }, f.check, f.detail))?;
        }
    }
    match findings.iter().filter(|f| !f.ok).max_by_key(|f| f.kind.exit_code()) {
        None => Ok(()),
        Some(worst) => Err(Error::new(worst.kind, "check failed").at(&path)),
    }
}

fn copies(header: &Header) -> Result<String> {
    match header.warnings() {
        [] => Ok(format!("both good, seqid {}", header.seqid())),
        warnings => Err(Error::new(ErrorKind::Damaged, warnings.join("; "))
            .hint("the next writable mount repairs the losing copy")),
    }
}

/// Unwraps through the vault; digest and MAC are checked on the way.
fn opens(context: &Context, header: &Header, token: u32, path: &std::path::Path) -> Result<String> {
    let unlocked = context.existing()?.unlock_token(header, token, &format!("check {}", path.display()))?;
    match unlocked.warnings.as_slice() {
        [] => Ok("opens; digest and MAC good".to_owned()),
        warnings => Err(Error::new(ErrorKind::Damaged, warnings.join("; "))),
    }
}
