//! `wrapdisk info`.

use std::path::{Path, PathBuf};

use super::context::Context;
use super::{output, size, unlock};
use crate::control::{MountStatus, json_path};
use crate::error::Result;
use crate::luks2::{Header, Holes};
use crate::store::BackingStore;

/// Show what a container is: size, key versions, keyslots; nothing is unlocked
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk info vm.wd
  wrapdisk info vm.wd --output json | jq .tokens")]
pub(super) struct Args {
    /// Container, mountpoint or uuid
    disk: PathBuf,

    #[command(flatten)]
    output: output::OutputArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<()> {
    let path = context.container(&args.disk)?;
    let (store, header) = unlock::load_shared(context, &path)?;
    let allocated = store.allocated()?.get();
    let mount = context.mount_of(&path)?;
    if args.output.json() {
        let mut value = to_json(&path, &header, allocated);
        value["mountpoint"] = mount.map(|m| json_path::value(&m.mountpoint)).into();
        return output::json(&value);
    }
    show(&path, &header, allocated, mount.as_ref())
}

fn holes(header: &Header) -> &'static str {
    match header.holes() {
        Holes::Zeros => "zeros",
        Holes::None => "none",
    }
}

fn to_json(path: &Path, header: &Header, allocated: u64) -> serde_json::Value {
    let tokens: Vec<_> = header
        .tokens()
        .map(|(id, token)| {
            serde_json::json!({ "id": id, "set": token.set(), "kid": token.wrapped().kid.as_str(), "alg": token.wrapped().alg.name() })
        })
        .collect();
    let keyslots: Vec<_> = header
        .keyslots()
        .iter()
        .map(|slot| serde_json::json!({ "id": slot.id, "kdf": slot.kdf.to_string() }))
        .collect();
    serde_json::json!({
        "disk": json_path::value(path),
        "uuid": header.uuid(),
        "label": header.label(),
        "kind": header.kind().to_string(),
        "size": header.size().get(),
        "allocated": allocated,
        "sectorSize": header.segment().sector_size.bytes(),
        "offset": header.segment().offset.get(),
        "encryption": "aes-xts-plain64",
        "holes": holes(header),
        "discards": header.discards(),
        "seqid": header.seqid(),
        "tokens": tokens,
        "keyslots": keyslots,
        "warnings": header.warnings(),
    })
}

fn show(path: &Path, header: &Header, allocated: u64, mount: Option<&MountStatus>) -> Result<()> {
    let plain = if header.is_plain() { " (plain LUKS2, no vault token)" } else { "" };
    let holes = match header.holes() {
        Holes::Zeros => "read as zeros; they show which sectors were never used",
        Holes::None => "none: every sector is encrypted data",
    };
    let mut fields = vec![
        ("disk", path.display().to_string()),
        ("kind", format!("{}{plain}", header.kind())),
        ("size", format!("{} ({} bytes)", size::show(header.size().get()), header.size())),
        ("allocated", size::show(allocated)),
        ("uuid", header.uuid().to_owned()),
        (
            "encryption",
            format!("aes-xts-plain64, 512-bit key, {}-byte sectors", header.segment().sector_size.bytes()),
        ),
        ("holes", holes.to_owned()),
        ("discards", if header.discards() { "free space" } else { "write encrypted zeros" }.to_owned()),
    ];
    if !header.label().is_empty() {
        fields.insert(1, ("label", header.label().to_owned()));
    }
    for (_, token) in header.tokens() {
        fields.push(("set", token.set().to_owned()));
        fields.push(("key", token.wrapped().kid.to_string()));
    }
    for slot in header.keyslots() {
        fields.push(("keyslot", format!("{}: {}", slot.id, slot.kdf)));
    }
    if let Some(mount) = mount {
        fields.push(("mounted", format!("at {} by process {}", mount.mountpoint.display(), mount.pid)));
    }
    output::fields(&fields)
}
