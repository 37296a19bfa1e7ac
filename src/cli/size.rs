//! Sizes as people write them.

use crate::units::ByteLen;

/// Bytes, or a number with a unit: K M G T P (also KiB ...) count in 1024s, KB MB GB TB PB in 1000s. A fraction is allowed
/// where it comes out even: `1.5G`.
pub(super) fn parse(text: &str) -> Result<ByteLen, String> {
    let refuse = || {
        format!(
            "found \"{}\", allowed a number of bytes or a size such as 512M, 20G, 1.5T, 20GB",
            text.escape_debug()
        )
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        "P" | "PIB" => 1 << 50,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "PB" => 1_000_000_000_000_000,
        _ => return Err(refuse()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return Err(refuse());
    }
    let whole: u128 = whole.parse().map_err(|_| refuse())?;
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| refuse())? };
    let scaled =
        whole.checked_mul(scale).and_then(|w| (w + fraction).checked_mul(unit)).ok_or_else(refuse)?;
    if scaled % scale != 0 {
        return Err(format!("found \"{text}\", which is not a whole number of bytes"));
    }
    u64::try_from(scaled / scale)
        .ok()
        .and_then(ByteLen::new)
        .ok_or_else(|| format!("found \"{text}\", allowed less than 8 EiB"))
}

/// The size of a new disk: a positive multiple of 512.
pub(super) fn parse_disk(text: &str) -> Result<ByteLen, String> {
    let size = parse(text)?;
    if size.is_zero() || size.get() % 512 != 0 {
        return Err(format!("found {size} bytes, allowed a positive multiple of 512"));
    }
    Ok(size)
}

/// For people: the largest binary unit that leaves at most two decimals, with the bytes.
pub(super) fn show(bytes: u64) -> String {
    const UNITS: [(&str, u64); 5] =
        [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, unit) in UNITS {
        if bytes >= unit {
            let hundredths = u128::from(bytes) * 100 / u128::from(unit);
            let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            return format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'));
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("1.5G", 3 << 29),
            ("20GiB", 20 << 30),
            ("1GB", 1_000_000_000),
            ("1 MiB", 1 << 20),
        ] {
            assert_eq!(parse(text).unwrap().get(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "-1",
            "1X",
            ".5G",
            "1.",
            "1..2G",
            "0x10",
            "1e3",
            "9E",
            "8192P",
            "99999999999999999999",
            "1.0000000001G",
            "0.3K",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_disk("0").unwrap_err().contains("positive multiple of 512"));
        assert!(parse_disk("1000").unwrap_err().contains("1000 bytes"));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit() {
        assert_eq!(show(20 << 30), "20 GiB");
        assert_eq!(show(3 << 29), "1.5 GiB");
        assert_eq!(show(511), "511 bytes");
    }
}
