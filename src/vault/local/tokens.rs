//! Signing in, and the tokens that come of it.
//!
//! Must never see: keys, grants.
//!
//! Invariants:
//! 1. A token is 256 random bits; only its SHA-256 is kept. It is bound to one identity and one audience.
//! 2. Identity and grants are looked up at every use of a token: taking one away works on the next request.
//! 3. Whoever fails is slowed, by who he says he is and by his address, so that nobody slows another. The waiting is his:
//!    nothing sleeps here.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;
use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::credentials::{CredentialKind, generate};
use super::identities::{Identity, select, shown};
use super::refusal::{Fail, Refusal, from_sqlite};
use super::{LocalVault, Permission, Task, Work, now};
use crate::secret::SecretBytes;
use crate::vault::{Call, Origin, VaultError};

/// What somebody signs in with.
#[derive(Clone, Copy)]
pub enum SignIn<'a> {
    /// The client credentials flow.
    ClientSecret {
        /// Client id, object id or name.
        client: &'a str,
        /// Its secret.
        secret: &'a [u8],
    },
    /// The managed identity endpoint: the secret selects the identity.
    Header {
        /// `X-IDENTITY-HEADER`.
        secret: &'a [u8],
        /// A client id, object id or name that must be the same identity's.
        hint: Option<&'a str>,
    },
    /// The instance metadata endpoint, which has no secret: whoever reaches it is this identity.
    Imds {
        /// Its object id.
        oid: Uuid,
    },
}

/// What a signed-in client shows from then on.
#[derive(Debug)]
pub struct Token {
    /// 43 characters, base64url.
    pub text: SecretBytes,
    /// Whose it is.
    pub identity: Identity,
    /// What it is for, as it was normalised.
    pub audience: String,
    /// Unix seconds.
    pub issued: i64,
    /// Unix seconds.
    pub expires: i64,
}

/// Why a token is not accepted.
#[derive(Debug)]
pub enum TokenError {
    /// Missing, unknown or expired.
    Unknown,
    /// It is for somebody else; for whom.
    WrongAudience(String),
    /// It could not be looked up.
    Broken(VaultError),
}

/// Seconds. The default of `vault serve` is 3600.
const LIFETIMES: std::ops::RangeInclusive<u64> = 300..=86_400;
const LONGEST_AUDIENCE: usize = 256;

impl LocalVault {
    /// Signs in, for a token. Every outcome is a record, `Authentication`.
    ///
    /// # Errors
    /// Refused: 401 (unknown, disabled, wrong secret: one answer for all), 429 with a time to wait, 400 (audience,
    /// lifetime, a hint that contradicts the secret). Broken.
    pub fn sign_in(
        &self,
        who: SignIn<'_>,
        audience: &str,
        lifetime: Duration,
        origin: &Origin,
    ) -> Result<Token, Fail> {
        let key = Brake::key(&who, origin);
        let unread = self.brake().try_pass(key, Instant::now())?;
        let mut call = Call::new(self.claimed(&who)?, "sign in");
        call.origin = origin.clone();
        let done = self.audited(SIGN_IN, &call, |work| {
            if unread > 0 {
                work.change = Some(format!("{unread} attempts before this one were not looked at"));
            }
            let audience = work.audience(audience)?;
            let lifetime = work.lifetime(lifetime)?;
            let identity = work.proven(&who)?;
            work.allowed = true;
            work.issue(identity, audience, lifetime)
        });
        self.brake().note(key, &done, Instant::now());
        done
    }

    /// Whose token this is, if it is for one of these audiences. Cheap, and not a record: the request it comes with is.
    /// The identity may be disabled or removed by now: then the request is refused, as without permission (RULINGS 23).
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn authenticate(&self, token: &str, audiences: &[&str]) -> Result<Uuid, TokenError> {
        if token.len() != 43 {
            return Err(TokenError::Unknown);
        }
        let db = self.current().map_err(TokenError::Broken)?;
        let found = db
            .conn
            .prepare_cached("SELECT identity, audience FROM token WHERE hash = ?1 AND expires > ?2")
            .and_then(|mut query| {
                query
                    .query_row(params![hash(token.as_bytes()), now()], |row| {
                        Ok((super::uuid_of(&row.get::<_, String>(0)?)?, row.get::<_, String>(1)?))
                    })
                    .optional()
            })
            .map_err(|e| TokenError::Broken(from_sqlite(&e)))?;
        match found {
            None => Err(TokenError::Unknown),
            Some((oid, audience)) if audiences.iter().any(|a| normal(a) == audience) => Ok(oid),
            Some((_, audience)) => Err(TokenError::WrongAudience(audience)),
        }
    }

    fn brake(&self) -> std::sync::MutexGuard<'_, Brake> {
        self.sign_ins.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whom the record names; nobody when the client names nobody we know.
    fn claimed(&self, who: &SignIn<'_>) -> Result<Uuid, Fail> {
        let name = match who {
            SignIn::ClientSecret { client, .. } => client,
            SignIn::Header { secret, .. } => {
                let found = self.peek(SIGN_IN, &Call::new(Uuid::nil(), ""), |work| {
                    work.matching(CredentialKind::IdentityHeader, None, secret)
                });
                return Ok(found?.unwrap_or_default());
            }
            SignIn::Imds { oid } => return Ok(*oid),
        };
        let db = self.current().map_err(Fail::Broken)?;
        Ok(by_name(&db.conn, name)?.map_or(Uuid::nil(), |identity| identity.oid))
    }
}

const SIGN_IN: Task<'static> =
    Task { operation: "Authentication", permission: Permission::SignIn, path: "/oauth2/token", action: "" };

/// Whom a client names: by client id or object id, or by the name of a user.
fn by_name(conn: &rusqlite::Connection, name: &str) -> rusqlite::Result<Option<Identity>> {
    conn.prepare_cached(&select(
        "client_id = ?2 OR oid = ?2 OR (name = ?1 AND kind <> 'system') ORDER BY name = ?1 LIMIT 1",
    ))?
    .query_row(params![name, name.to_lowercase()], Identity::from_row)
    .optional()
}

impl Work<'_> {
    /// The identity that the secret proves.
    fn proven(&mut self, who: &SignIn<'_>) -> Result<Identity, Fail> {
        let proven = match *who {
            SignIn::ClientSecret { client, secret } => match by_name(self.tx, client)? {
                Some(identity) => {
                    self.matching(CredentialKind::ClientSecret, Some(identity.oid), secret)?.map(|_| identity)
                }
                None => None,
            },
            SignIn::Header { secret, hint } => {
                match self.matching(CredentialKind::IdentityHeader, None, secret)? {
                    Some(oid) => {
                        let identity = self.identity(oid)?;
                        if let Some(hint) = hint
                            && by_name(self.tx, hint)?.is_none_or(|named| named.oid != oid)
                        {
                            return Err(self.refuse(|scene| {
                                scene.bad_parameter(
                                    format!("The identity {} is not the header's.", shown(hint)),
                                    "name none, or the one the header belongs to",
                                )
                            }));
                        }
                        Some(identity)
                    }
                    None => None,
                }
            }
            SignIn::Imds { oid } => Some(self.identity(oid)?),
        };
        match proven {
            Some(identity) if identity.enabled => Ok(identity),
            _ => Err(self.refuse(|scene| scene.not_signed_in())),
        }
    }

    fn issue(&mut self, identity: Identity, audience: String, lifetime: i64) -> Result<Token, Fail> {
        let text = generate()?;
        let issued = now();
        let expires = issued + lifetime;
        self.change =
            Some(format!("a token for {audience} was issued to {} ({})", identity.name, identity.oid));
        self.tx.execute("DELETE FROM token WHERE expires <= ?1", [issued])?;
        self.tx.execute(
            "INSERT INTO token (hash, identity, audience, issued, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![hash(text.expose()), identity.oid.to_string(), audience, issued, expires],
        )?;
        Ok(Token { text, identity, audience, issued, expires })
    }

    fn audience(&self, audience: &str) -> Result<String, Fail> {
        if (1..=LONGEST_AUDIENCE).contains(&audience.len()) && audience.bytes().all(|b| b.is_ascii_graphic())
        {
            return Ok(normal(audience));
        }
        Err(self.refuse(|scene| {
            scene.bad_parameter(
                "The audience is invalid.".into(),
                "allowed is a URL such as https://vault.azure.net",
            )
        }))
    }

    fn lifetime(&self, lifetime: Duration) -> Result<i64, Fail> {
        let seconds = lifetime.as_secs();
        i64::try_from(seconds).ok().filter(|_| LIFETIMES.contains(&seconds)).ok_or_else(|| {
            self.refuse(|scene| {
                scene.bad_parameter(
                    format!("The lifetime is invalid: found {seconds} s."),
                    "allowed are 300 to 86400 s",
                )
            })
        })
    }
}

/// As URLs are compared here: without case, without a slash at the end.
fn normal(audience: &str) -> String {
    audience.trim_end_matches('/').to_ascii_lowercase()
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

impl fmt::Debug for SignIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientSecret { .. } => "ClientSecret",
            Self::Header { .. } => "Header",
            Self::Imds { .. } => "Imds",
        })
    }
}

/// Who failed lately. Of this process only: a restart forgives, which is cheaper than a row a failure.
pub(super) struct Brake(LruCache<Key, Strikes>);

type Key = [u8; 32];

struct Strikes {
    failures: u32,
    last: Instant,
    /// Attempts turned away since then.
    unread: u64,
}

/// Callers remembered; the one not seen for longest is forgiven first.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Typing errors are free.
const FREE: u32 = 3;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Default for Brake {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Brake {
    /// By who he says he is, and his address.
    fn key(who: &SignIn<'_>, origin: &Origin) -> Key {
        let mut h = Sha256::new();
        h.update(format!("{who:?}\0"));
        match who {
            SignIn::ClientSecret { client, .. } => h.update(client.to_lowercase()),
            SignIn::Header { hint, .. } => h.update(hint.unwrap_or_default().to_lowercase()),
            SignIn::Imds { oid } => h.update(oid.as_bytes()),
        }
        let address = match origin {
            Origin::Process => None,
            Origin::Network { address: IpAddr::V6(address), .. } => {
                // A /64 is one customer's.
                Some(address.segments()[..4].iter().map(|s| format!("{s:04x}")).collect::<String>())
            }
            Origin::Network { address, .. } => Some(address.to_string()),
        };
        h.update(format!("\0{address:?}"));
        h.finalize().into()
    }

    /// How many attempts were turned away since the last that was looked at; or this one is turned away as well.
    fn try_pass(&mut self, key: Key, now: Instant) -> Result<u64, Fail> {
        let Some(strikes) = self.0.get_mut(&key) else { return Ok(0) };
        let left = strikes.wait().saturating_sub(now.saturating_duration_since(strikes.last));
        if left.is_zero() {
            return Ok(std::mem::take(&mut strikes.unread));
        }
        strikes.unread += 1;
        let description = format!("Too many failed attempts to sign in: wait {} s.", left.as_secs() + 1);
        let error = VaultError::Transient { message: description.clone(), retry_after: Some(left) };
        Err(Refusal { status: 429, signature: "Throttled", inner: None, description, error }.into())
    }

    fn note<T>(&mut self, key: Key, done: &Result<T, Fail>, now: Instant) {
        match done {
            Ok(_) => {
                self.0.pop(&key);
            }
            Err(Fail::Refused(refusal)) if refusal.status == 401 => {
                let strikes = self.0.get_or_insert_mut(key, || Strikes { failures: 0, last: now, unread: 0 });
                strikes.failures = strikes.failures.saturating_add(1);
                strikes.last = now;
            }
            Err(_) => {}
        }
    }
}

impl Strikes {
    /// 1 s after the fourth failure, doubled with each, at most a minute.
    fn wait(&self) -> Duration {
        match self.failures.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(LONGEST_WAIT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<(), Fail> {
        let error = VaultError::Auth(String::new());
        Err(Refusal { status: 401, signature: "", inner: None, description: String::new(), error }.into())
    }

    #[test]
    fn failures_are_slowed_each_time_longer_and_forgiven_after_a_success() {
        let (mut brake, start) = (Brake::default(), Instant::now());
        let (key, other) = ([1; 32], [2; 32]);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for _ in 0..FREE + 1 {
            assert_eq!(brake.try_pass(key, at(0)).unwrap(), 0);
            brake.note(key, &failed(), at(0));
        }
        let Err(Fail::Refused(refusal)) = brake.try_pass(key, at(0)) else { panic!("not slowed") };
        assert_eq!(refusal.status, 429);
        assert!(
            matches!(refusal.error, VaultError::Transient { retry_after: Some(t), .. } if t.as_secs() == 1)
        );
        assert_eq!(brake.try_pass(other, at(0)).unwrap(), 0, "somebody else is not slowed");
        assert_eq!(brake.try_pass(key, at(1)).unwrap(), 1, "one was turned away");
        for n in 0..10 {
            brake.note(key, &failed(), at(100 * n));
        }
        assert!(brake.try_pass(key, at(900 + 59)).is_err());
        assert!(brake.try_pass(key, at(900 + 60)).is_ok(), "a minute at most");
        brake.note(key, &Ok(()), at(2000));
        assert_eq!(brake.try_pass(key, at(2000)).unwrap(), 0);
    }

    #[test]
    fn the_slowed_are_told_apart_by_name_and_address() {
        let from = |address: &str| Origin::Network {
            address: address.parse().unwrap(),
            tls: "TLS1_3",
            agent: String::new(),
        };
        let who = |client| SignIn::ClientSecret { client, secret: b"" };
        let key = |client, address: &str| Brake::key(&who(client), &from(address));
        assert_eq!(key("app", "10.0.0.1"), key("APP", "10.0.0.1"));
        assert_ne!(key("app", "10.0.0.1"), key("app", "10.0.0.2"));
        assert_ne!(key("app", "10.0.0.1"), key("other", "10.0.0.1"));
        assert_eq!(key("app", "2001:db8::1"), key("app", "2001:db8::2"));
        assert_ne!(key("app", "2001:db8::1"), key("app", "2001:db8:0:1::1"));
        assert_eq!(format!("{:?}", who("app")), "ClientSecret", "no secret in Debug");
    }
}
