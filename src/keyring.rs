//! From a container's tokens to its volume key, and back: the only code that sees both a header and a vault.
//!
//! Must never see: stores' data, caches, FUSE, sets. Who asks, and in which vault, comes in as [`Attempt`]s.
//!
//! Invariants:
//! 1. A key is handed out only after digest and MAC passed (ON-DISK section 5).
//! 2. A wrap is handed out only after it was unwrapped again and compared in constant time (ON-DISK section 10).

use crate::envelope::{Kid, WrapAlg, WrappedDek};
use crate::error::{Error, ErrorKind, Result};
use crate::luks2::Header;
use crate::secret::Secret;
use crate::vault::{Call, KeyVault, VaultError};
use crate::xts::VolumeKey;

/// One token, and how to try it.
#[derive(Debug)]
pub struct Attempt<'a, V> {
    /// Its number in the header.
    pub token: u32,
    /// What it holds.
    pub wrapped: &'a WrappedDek,
    /// Where and in whose name; or why it cannot be tried.
    pub route: Result<(V, Call)>,
}

/// A volume key that passed every check.
#[derive(Debug)]
pub struct Unlocked {
    /// The key.
    pub key: VolumeKey,
    /// The token that gave it.
    pub token: u32,
    /// Under which key version.
    pub kid: Kid,
    /// What was odd but not fatal.
    pub warnings: Vec<String>,
}

/// Tries the attempts in their order; the first that unwraps decides. A token that is denied or out of reach passes on to
/// the next; one whose key fails digest or MAC ends the search, because the container is not what it claims to be.
///
/// # Errors
/// Every token's reason, by kid: `Denied`, `Unreachable` or `Busy` (when trying again could help) or `Damaged`.
pub fn unlock<'a, 'v, V>(
    header: &Header,
    attempts: impl IntoIterator<Item = Attempt<'a, V>>,
) -> Result<Unlocked>
where
    V: std::ops::Deref<Target = dyn KeyVault + 'v>,
{
    let mut failures: Vec<(Kid, Error)> = Vec::new();
    for attempt in attempts {
        let unwrapped = attempt.route.and_then(|(vault, call)| Ok(vault.unwrap(attempt.wrapped, &call)?));
        match unwrapped {
            Ok(secret) => {
                let key = VolumeKey::new(secret)?;
                let warnings = header.verify(Some(attempt.token), &key)?;
                return Ok(Unlocked {
                    key,
                    token: attempt.token,
                    kid: attempt.wrapped.kid.clone(),
                    warnings,
                });
            }
            Err(e) => failures.push((attempt.wrapped.kid.clone(), e)),
        }
    }
    Err(join(failures))
}

fn join(mut failures: Vec<(Kid, Error)>) -> Error {
    match failures.len() {
        0 => Error::new(ErrorKind::Unsupported, "tokens: found no wrapdisk-vault token, allowed 1 to 8")
            .hint("this is a plain LUKS2 container: open it with --passphrase"),
        1 => failures.remove(0).1,
        _ => {
            let severity = |e: &Error| match e.kind() {
                // Trying again could help, so it is no denial (RULINGS 20); the last three are those of sets.db.
                ErrorKind::Unreachable | ErrorKind::Busy | ErrorKind::Io | ErrorKind::NoSpace => 3,
                ErrorKind::Denied => 2,
                ErrorKind::Damaged => 1,
                _ => 0,
            };
            let kind = failures
                .iter()
                .map(|(_, e)| e)
                .max_by_key(|e| severity(e))
                .map_or(ErrorKind::Other, Error::kind);
            let reasons: Vec<_> = failures.iter().map(|(kid, e)| format!("{kid}: {}", e.chain())).collect();
            Error::new(kind, format!("no token could be unwrapped: {}", reasons.join("; ")))
        }
    }
}

/// Wraps a volume key and proves that the wrap opens again.
///
/// # Errors
/// What the vault says; `Damaged` when it gives back another key.
pub fn wrap(vault: &dyn KeyVault, kid: &Kid, key: &VolumeKey, call: &Call) -> Result<WrappedDek> {
    Ok(wrap_and_compare(vault, kid, key.secret(), call).map_err(|(_, e)| e)?)
}

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The key that encrypts.
    Wrap,
    /// The key that decrypts, and the comparison.
    Unwrap,
}

/// Wraps a random value and unwraps it again: whether a key can be used, before anything depends on it.
///
/// # Errors
/// The step, and what the vault says; `Corrupt` when it gives back another value.
pub fn prove(vault: &dyn KeyVault, kid: &Kid, call: &Call) -> Result<(), (Step, VaultError)> {
    let memory = |e: Error| VaultError::Transient { message: e.chain(), retry_after: None };
    let random = Secret::random().map_err(|e| (Step::Wrap, memory(e)))?;
    wrap_and_compare(vault, kid, &random, call).map(|_| ())
}

fn wrap_and_compare(
    vault: &dyn KeyVault,
    kid: &Kid,
    secret: &Secret<64>,
    call: &Call,
) -> Result<WrappedDek, (Step, VaultError)> {
    let wrapped = vault.wrap(kid, WrapAlg::RsaOaep256, secret, call).map_err(|e| (Step::Wrap, e))?;
    let again = vault.unwrap(&wrapped, call).map_err(|e| (Step::Unwrap, e))?;
    if !again.ct_eq(secret) {
        let message = format!("{kid}: the vault unwraps another key than it wrapped; nothing was written");
        return Err((Step::Unwrap, VaultError::Corrupt(message)));
    }
    Ok(wrapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kinds: &[ErrorKind]) -> Error {
        let failure = |(n, kind): (usize, &ErrorKind)| {
            let kid = Kid::parse(&format!("https://demo.vault.example/keys/k/{n}")).unwrap();
            (kid, Error::new(*kind, format!("reason {n}")))
        };
        join(kinds.iter().enumerate().map(failure).collect())
    }

    #[test]
    fn what_may_pass_is_said_before_what_was_refused_and_that_before_damage() {
        use ErrorKind::{Busy, Damaged, Denied, Io, NoSpace, Unreachable, Unsupported};
        for (kinds, expected) in [
            (&[][..], Unsupported),
            (&[Denied], Denied),
            (&[Denied, Damaged], Denied),
            (&[Damaged, Denied], Denied),
            (&[Denied, Unreachable], Unreachable),
            (&[Unreachable, Denied, Damaged], Unreachable),
            (&[Busy, Denied], Busy),
            (&[Denied, Io], Io),
            (&[NoSpace, Damaged], NoSpace),
        ] {
            let e = failed(kinds);
            assert_eq!(e.kind(), expected, "{kinds:?}");
            assert!((0..kinds.len()).all(|n| e.to_string().contains(&format!("reason {n}"))), "{e}");
        }
    }
}
