//! The `Host` a client dialled, and the audience its token is for.

use super::{Malformed, shown};

/// The authority of a request: a name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    text: String,
    /// Without brackets and port, in lower case.
    name: String,
    port: Option<u16>,
}

impl Host {
    /// `name`, `name:port`, `1.2.3.4:port`, `[::1]:port`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::split(text)
            .ok_or_else(|| Malformed(format!("The Host header is invalid: found \"{}\".", shown(text))))
    }

    fn split(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > 262 {
            return None; // 255 of a name, a colon, a port
        }
        let (name, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        } else {
            match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            }
        };
        let port = match port {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
            None => None,
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':');
        if name.is_empty() || !name.bytes().all(fits) {
            return None;
        }
        let text = text.to_ascii_lowercase();
        Some(Self { text, name: name.to_ascii_lowercase(), port })
    }

    /// As it was sent, in lower case: what every URL of an answer begins with.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Without port and brackets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The resource a token for this host must be for. The SDKs compare its host with the end of the host they dialled
    /// (the Python one with the port, the Rust one without), so a `*.vault.localhost` gets a resource of its own.
    #[must_use]
    pub fn audience(&self) -> Audience {
        if !self.name.ends_with(".vault.localhost") {
            return Audience(AZURE.to_owned());
        }
        Audience(match self.port {
            Some(port) => format!("{LOCAL}:{port}"),
            None => LOCAL.to_owned(),
        })
    }
}

const AZURE: &str = "https://vault.azure.net";
const LOCAL: &str = "https://vault.localhost";

/// What a token is for: `https://vault.azure.net`, or `https://vault.localhost[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience(String);

impl Audience {
    /// A resource as clients send it, with or without a slash at its end.
    ///
    /// # Errors
    /// Another audience.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let wanted = text.strip_suffix('/').unwrap_or(text);
        let port = |rest: &str| {
            rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
        };
        if wanted == AZURE || wanted.strip_prefix(LOCAL).is_some_and(port) {
            return Ok(Self(wanted.to_owned()));
        }
        Err(Malformed(format!(
            "The resource principal is invalid: found \"{}\", allowed {AZURE} and {LOCAL}[:PORT].",
            shown(text)
        )))
    }

    /// A scope of a client-credentials request: `AUDIENCE/.default`.
    ///
    /// # Errors
    /// Another scope.
    pub fn of_scope(text: &str) -> Result<Self, Malformed> {
        let audience = text.strip_suffix("/.default").ok_or_else(|| {
            Malformed(format!("The scope is invalid: found \"{}\", allowed RESOURCE/.default.", shown(text)))
        })?;
        Self::parse(audience)
    }

    /// Without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a server dialled as `host` takes: its own resource, and Azure's.
    #[must_use]
    pub fn accepted(host: &Host) -> Vec<String> {
        let own = host.audience().0;
        if own == AZURE { vec![own] } else { vec![own, LOCAL.to_owned(), AZURE.to_owned()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_with_or_without_a_port() {
        for (text, name, audience) in [
            ("localhost", "localhost", AZURE),
            ("LOCALHOST:8443", "localhost", AZURE),
            ("127.0.0.1:1", "127.0.0.1", AZURE),
            ("[::1]:8443", "::1", AZURE),
            ("[::1]", "::1", AZURE),
            ("a.vault.localhost:8443", "a.vault.localhost", "https://vault.localhost:8443"),
            ("a.vault.localhost", "a.vault.localhost", LOCAL),
        ] {
            let host = Host::parse(text).unwrap();
            assert_eq!((host.name(), host.audience().as_str()), (name, audience), "{text}");
        }
        for bad in
            ["", ":1", "a:", "a:65536", "a:+1", "a b", "a/b", "u@h", "[::1", "[::1]x", "[x]:1", "a:1:2", "\n"]
        {
            assert!(Host::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Host::parse(&"a".repeat(300)).is_err());
    }

    #[test]
    fn audiences_are_those_of_the_design_and_nothing_else() {
        for good in [AZURE, "https://vault.azure.net/", LOCAL, "https://vault.localhost:8443"] {
            assert_eq!(Audience::parse(good).unwrap().as_str(), good.trim_end_matches('/'));
        }
        for bad in [
            "",
            "https://vault.azure.net//",
            "https://vault.azure.net.evil",
            "https://vault.localhost:x",
            "https://graph.microsoft.com",
        ] {
            assert!(Audience::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Audience::of_scope("https://vault.azure.net/.default").unwrap().as_str(), AZURE);
        assert_eq!(Audience::of_scope("https://vault.azure.net//.default").unwrap().as_str(), AZURE);
        assert!(Audience::of_scope(AZURE).is_err());
    }
}
