//! What can be said of a key when it is made, imported or changed.

use std::collections::BTreeMap;

use crate::vault::KeyOperation;
use crate::vault::local::{KeyAttributes, KeyUpdate, NewKey, RsaBits};

/// Options of `create`, `import`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct NewArgs {
    /// Switched off for now
    #[arg(long)]
    disabled: bool,

    #[command(flatten)]
    more: Attributes,
}

/// Options that `set-attributes` has as well.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Attributes {
    /// It wraps nothing before this time (2027-01-31, or 2027-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    not_before: Option<i64>,

    /// It wraps nothing from this time on; what it wrapped still unwraps
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    expires: Option<i64>,

    /// What it may be used for: encrypt, decrypt, sign, verify, wrapKey, unwrapKey
    #[arg(long, value_name = "OP", num_args = 1.., value_delimiter = ',', value_parser = parse_operation)]
    ops: Option<Vec<KeyOperation>>,

    /// Your notes; all of them at once (none: takes them away)
    #[arg(long, value_name = "NAME=VALUE", num_args = 0.., value_parser = parse_tag)]
    tags: Option<Vec<(String, String)>>,
}

impl NewArgs {
    /// `default`: what it may be used for when nothing is said.
    pub(super) fn to_new(&self, bits: RsaBits, default: Option<&[KeyOperation]>) -> NewKey {
        let more = &self.more;
        NewKey {
            bits,
            attributes: KeyAttributes {
                enabled: !self.disabled,
                not_before: more.not_before,
                expires: more.expires,
            },
            operations: more.ops.clone().or(default.map(<[_]>::to_vec)),
            tags: more.tags().unwrap_or_default(),
            ..NewKey::default()
        }
    }
}

impl Attributes {
    pub(super) fn to_update(&self, enabled: Option<bool>) -> KeyUpdate {
        KeyUpdate {
            enabled,
            not_before: self.not_before,
            expires: self.expires,
            operations: self.ops.clone(),
            tags: self.tags(),
        }
    }

    fn tags(&self) -> Option<BTreeMap<String, String>> {
        self.tags.as_ref().map(|tags| tags.iter().cloned().collect())
    }
}

fn parse_time(text: &str) -> Result<i64, String> {
    let day =
        || text.parse::<jiff::civil::Date>().ok().and_then(|day| format!("{day}T00:00:00Z").parse().ok());
    let time = text.parse::<jiff::Timestamp>().ok().or_else(day);
    time.map(jiff::Timestamp::as_second)
        .ok_or_else(|| "allowed 2027-01-31 or 2027-01-31T12:00:00Z".to_owned())
}

fn parse_operation(text: &str) -> Result<KeyOperation, String> {
    KeyOperation::parse(text).map_err(|e| e.to_string())
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("allowed NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
