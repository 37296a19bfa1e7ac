//! Refusals: `FIELD: found VALUE, allowed SET` (ON-DISK section 8). The caller puts the file in front.

use std::fmt::Display;

use crate::error::{Error, ErrorKind};

/// Longest part of a found value that is shown, in bytes.
const MAX_SHOWN: usize = 64;

/// A value from a hostile header, quoted, escaped and cut.
pub(super) fn quoted(value: &str) -> String {
    let mut shown = String::new();
    for c in value.chars() {
        let escaped = c.escape_debug();
        if shown.len() + escaped.clone().map(char::len_utf8).sum::<usize>() > MAX_SHOWN {
            shown.push_str("...");
            break;
        }
        shown.extend(escaped);
    }
    format!("\"{shown}\"")
}

/// The container is broken or was tampered with: exit 5.
pub(super) fn damaged(field: impl Display, found: impl Display, allowed: impl Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("{field}: found {found}, allowed {allowed}"))
}

/// The container may be whole, but it is not one we open: exit 1.
pub(super) fn unsupported(field: impl Display, found: impl Display, allowed: impl Display) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{field}: found {found}, allowed {allowed}"))
}
