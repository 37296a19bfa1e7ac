//! Who can sign in, what is a token good for and how long, and what does a thief of the database learn?

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use uuid::Uuid;
use wrapdisk::secret::SecretBytes;
use wrapdisk::vault::local::{
    AuditFilter, CredentialKind, Fail, IdentityKind, LocalVault, SignIn, Token, TokenError,
};
use wrapdisk::vault::{Call, Origin, VaultError};

const AUDIENCE: &str = "https://vault.azure.net";
const HOUR: Duration = Duration::from_secs(3600);

struct Scene {
    dir: TempDir,
    vault: LocalVault,
    admin: Call,
    oid: Uuid,
    secret: SecretBytes,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let vault = LocalVault::init(dir.path(), "default").unwrap();
    let admin = vault.admin("test");
    let oid = vault.create_identity("app", IdentityKind::User, &admin).unwrap();
    let secret = vault.add_credential(oid, CredentialKind::ClientSecret, None, None, &admin).unwrap();
    Scene { dir, vault, admin, oid, secret }
}

impl Scene {
    fn sign_in(&self, client: &str, secret: &[u8]) -> Result<Token, Fail> {
        self.vault.sign_in(SignIn::ClientSecret { client, secret }, AUDIENCE, HOUR, &from("10.1.2.3"))
    }
    fn sql(&self, change: &str) {
        Connection::open(self.dir.path().join("vault.db")).unwrap().execute_batch(change).unwrap();
    }
}

fn from(address: &str) -> Origin {
    Origin::Network { address: address.parse().unwrap(), tls: "TLS1_3", agent: "test/1".into() }
}

fn text(token: &Token) -> &str {
    std::str::from_utf8(token.text.expose()).unwrap()
}

#[track_caller]
fn status<T: std::fmt::Debug>(answer: Result<T, Fail>) -> u16 {
    match answer {
        Err(Fail::Refused(refusal)) => refusal.status,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_secret_gives_a_token_for_one_audience_and_one_identity() {
    let s = scene();
    assert_eq!(s.secret.len(), 43, "256 bits, base64url");
    let client_id = s.vault.find_identity("app", &s.admin).unwrap().client_id.to_string();
    for client in ["app", "APP", &client_id, &s.oid.to_string()] {
        let token = s.sign_in(client, s.secret.expose()).unwrap();
        assert_eq!((token.identity.oid, token.expires - token.issued, token.text.len()), (s.oid, 3600, 43));
        for audiences in [&["https://vault.azure.net/"][..], &["https://vault.localhost:8443", AUDIENCE]] {
            assert_eq!(s.vault.authenticate(text(&token), audiences).unwrap(), s.oid);
        }
        let wrong = s.vault.authenticate(text(&token), &["https://vault.localhost:8443"]);
        assert!(matches!(wrong, Err(TokenError::WrongAudience(found)) if found == AUDIENCE));
    }
    let lower = "a".repeat(43);
    for bad in ["", "x", &lower, &"a".repeat(100_000), "\0\u{e9}"] {
        assert!(matches!(s.vault.authenticate(bad, &[AUDIENCE]), Err(TokenError::Unknown)), "{}", bad.len());
    }
}

#[test]
fn whoever_cannot_prove_it_gets_one_answer() {
    let s = scene();
    let disabled = s.vault.create_identity("off", IdentityKind::User, &s.admin).unwrap();
    let known = s.vault.add_credential(disabled, CredentialKind::ClientSecret, None, None, &s.admin).unwrap();
    s.vault.set_identity_enabled(disabled, false, &s.admin).unwrap();
    let header = s.vault.add_credential(s.oid, CredentialKind::IdentityHeader, None, None, &s.admin).unwrap();
    let refusals = [
        s.sign_in("app", b"wrong"),
        s.sign_in("nobody", s.secret.expose()),
        s.sign_in("off", known.expose()),
        s.sign_in("admin", s.secret.expose()),
        s.sign_in("app", header.expose()), // a credential of the other kind
        s.sign_in("app", known.expose()),  // another one's
    ];
    let said: Vec<_> = refusals
        .into_iter()
        .map(|answer| match answer {
            Err(Fail::Refused(r)) => {
                assert!(matches!(r.error, VaultError::Auth(_)));
                (r.status, r.signature, r.inner, r.description)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
    assert_eq!((said[0].0, said[0].2), (401, Some("7000215")));
}

#[test]
fn a_header_selects_the_identity_and_a_contradiction_is_a_bad_request() {
    let s = scene();
    let other = s.vault.create_identity("other", IdentityKind::System, &s.admin).unwrap();
    let header = s.vault.add_credential(other, CredentialKind::IdentityHeader, None, None, &s.admin).unwrap();
    let with = |secret: &[u8], hint| {
        s.vault.sign_in(SignIn::Header { secret, hint }, AUDIENCE, HOUR, &from("127.0.0.1"))
    };
    let oid = other.to_string();
    for hint in [None, Some(oid.as_str())] {
        assert_eq!(with(header.expose(), hint).unwrap().identity.oid, other);
    }
    assert_eq!(status(with(header.expose(), Some("app"))), 400);
    assert_eq!(status(with(s.secret.expose(), None)), 401);
    let imds = SignIn::Imds { oid: other };
    assert_eq!(s.vault.sign_in(imds, AUDIENCE, HOUR, &from("127.0.0.1")).unwrap().identity.oid, other);
    let filter = AuditFilter { operation: Some("Authentication".into()), ..AuditFilter::default() };
    let records: Vec<_> = s.vault.audit(&filter).unwrap().iter().map(|r| r.value()).collect();
    assert_eq!(records.len(), 5);
    assert_eq!(records[0]["identity"]["claim"]["oid"], oid, "the record names whom the header proved");
    assert_eq!(records[0]["callerIpAddress"], "127.0.0.1");
    assert_eq!(records[0]["properties"]["tlsVersion"], "TLS1_3");
    assert_eq!(records[3]["properties"]["httpStatusCode"], 401);
}

#[test]
fn a_token_ends_by_time_and_its_identity_s_end_is_no_permission() {
    let s = scene();
    let token = s.sign_in("app", s.secret.expose()).unwrap();
    s.vault.set_identity_enabled(s.oid, false, &s.admin).unwrap();
    s.vault.remove_identity(s.oid, &s.admin).unwrap();
    let oid = s.vault.authenticate(text(&token), &[AUDIENCE]).unwrap();
    // So that a mount learns it within a probe, not when the token ends (RULINGS 23).
    assert_eq!(status(s.vault.list_keys(&Default::default(), &Call::new(oid, "probe"))), 403);
    s.sql("UPDATE token SET expires = 1");
    assert!(matches!(s.vault.authenticate(text(&token), &[AUDIENCE]), Err(TokenError::Unknown)));
    let again = s.vault.create_identity("app", IdentityKind::User, &s.admin).unwrap();
    let secret = s.vault.add_credential(again, CredentialKind::ClientSecret, None, None, &s.admin).unwrap();
    s.sign_in("app", secret.expose()).unwrap();
    let db = Connection::open(s.dir.path().join("vault.db")).unwrap();
    let left: u32 = db.query_row("SELECT count(*) FROM token", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1, "expired ones are swept");
}

#[test]
fn lifetimes_and_audiences_are_bounded() {
    let s = scene();
    let with = |audience: &str, seconds| {
        let who = SignIn::ClientSecret { client: "app", secret: s.secret.expose() };
        s.vault.sign_in(who, audience, Duration::from_secs(seconds), &Origin::Process)
    };
    for (audience, seconds) in
        [(AUDIENCE, 299), (AUDIENCE, 86_401), ("", 3600), ("a b", 3600), (&"a".repeat(257), 3600)]
    {
        assert_eq!(status(with(audience, seconds)), 400, "{audience} {seconds}");
    }
    assert!(with(AUDIENCE, 300).is_ok() && with(AUDIENCE, 86_400).is_ok());
    assert_eq!(with("HTTPS://Vault.Azure.Net/", 300).unwrap().audience, AUDIENCE);
}

#[test]
fn guessing_is_slowed_for_the_guesser_alone() {
    let s = scene();
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(status(s.sign_in("app", b"a guess of some length")));
    }
    assert_eq!(answers, [401, 401, 401, 401, 429, 429, 429, 429]);
    assert_eq!(status(s.sign_in("app", s.secret.expose())), 429, "right or wrong is not looked at");
    let who = SignIn::ClientSecret { client: "app", secret: s.secret.expose() };
    assert!(s.vault.sign_in(who, AUDIENCE, HOUR, &from("10.9.9.9")).is_ok(), "another address");
    let filter = AuditFilter { operation: Some("Authentication".into()), ..AuditFilter::default() };
    assert_eq!(s.vault.audit(&filter).unwrap().len(), 5, "what is turned away unread fills no disk");
}

#[test]
fn credentials_are_checked_listed_and_removed() {
    let s = scene();
    let secret = |text: &str| SecretBytes::take(&mut text.as_bytes().to_vec()).unwrap();
    let add = |given: &SecretBytes, expires| {
        s.vault.add_credential(s.oid, CredentialKind::ClientSecret, Some(given), expires, &s.admin)
    };
    for bad in ["short", "with a space in it, long enough", &"x".repeat(1025)] {
        assert_eq!(status(add(&secret(bad), None)), 400, "{bad}");
    }
    assert_eq!(status(add(&secret("long-enough-to-be-one"), Some(1))), 400);
    add(&secret("long-enough-to-be-one"), Some(32_503_680_000)).unwrap();
    assert_eq!(status(add(&secret("long-enough-to-be-one"), None)), 409);
    assert!(
        s.sign_in("app", b"long-enough-to-be-one").is_ok() && s.sign_in("app", s.secret.expose()).is_ok()
    );
    let list = s.vault.credentials(s.oid, &s.admin).unwrap();
    assert_eq!(list.iter().map(|c| c.expires).collect::<Vec<_>>(), [None, Some(32_503_680_000)]);
    s.sql("UPDATE credential SET expires = 1 WHERE expires IS NOT NULL");
    assert_eq!(status(s.sign_in("app", b"long-enough-to-be-one")), 401);
    s.vault.remove_credential(s.oid, list[0].id, &s.admin).unwrap();
    assert_eq!(status(s.vault.remove_credential(s.oid, list[0].id, &s.admin)), 400);
    assert_eq!(status(s.sign_in("app", s.secret.expose())), 401);
    let kind = CredentialKind::ClientSecret;
    assert_eq!(
        status(s.vault.add_credential(s.admin.identity, kind, None, None, &s.admin)),
        400,
        "the owner of the files has no network login"
    );
}

#[test]
fn no_secret_and_no_token_is_in_the_database_or_the_audit() {
    let s = scene();
    let token = s.sign_in("app", s.secret.expose()).unwrap();
    let _ = s.sign_in("app", b"a-wrong-secret-of-somebody");
    for file in ["vault.db", "vault.db-wal"] {
        let bytes = std::fs::read(s.dir.path().join(file)).unwrap();
        for (what, secret) in [
            ("secret", s.secret.expose()),
            ("token", token.text.expose()),
            ("guess", &b"a-wrong-secret-of-somebody"[..]),
        ] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{what} in {file}");
        }
    }
    assert_eq!(format!("{:?}", token.text), "SecretBytes(43 bytes)");
}
