//! Does a vault keep its promises? Written against `dyn KeyVault` and the little administration below, so that every
//! provider can be put through the same questions.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use uuid::Uuid;
use wrapdisk::envelope::{KeyRef, Kid, WrapAlg, WrappedDek};
use wrapdisk::error::{Error, ErrorKind};
use wrapdisk::secret::Secret;
use wrapdisk::vault::{Call, Denial, KeyInfo, VaultError};

mod contract_support;
#[cfg(all(feature = "azure", feature = "serve"))]
mod serve_support;
#[cfg(all(feature = "azure", feature = "serve"))]
mod support;

use contract_support::{Admin, Local};

const ALG: WrapAlg = WrapAlg::RsaOaep256;
const NOW: i64 = 1_700_000_000; // long ago

fn denial<T: std::fmt::Debug>(answer: Result<T, VaultError>) -> (Denial, String) {
    match answer {
        Err(VaultError::Denied(why, message)) => (why, message),
        other => panic!("not a denial: {other:?}"),
    }
}

/// A vault with one key, an identity that may use it, and a data key wrapped under it.
struct Scene {
    admin: Box<dyn Admin>,
    key: KeyInfo,
    user: Call,
    dek: Secret<64>,
    wrapped: WrappedDek,
}

fn scene(admin: Box<dyn Admin>) -> Scene {
    let key = admin.new_version("disk-kek");
    let user = admin.identity(Some(Some("disk-kek")));
    let dek = Secret::random().unwrap();
    let wrapped = admin.vault().wrap(&key.kid, ALG, &dek, &user).unwrap();
    Scene { admin, key, user, dek, wrapped }
}

/// One of each provider.
fn scenes() -> Vec<Scene> {
    let providers: Vec<Box<dyn Admin>> = vec![
        Box::new(Local::new()),
        #[cfg(all(feature = "azure", feature = "serve"))]
        Box::new(contract_support::elsewhere::Elsewhere::new()),
    ];
    providers.into_iter().map(scene).collect()
}

#[test]
fn what_was_wrapped_comes_back_under_the_version_that_wrapped_it() {
    for s in scenes() {
        assert_eq!(s.wrapped.kid, s.key.kid);
        assert_eq!(s.wrapped.bytes.len(), 256);
        let newer = s.admin.new_version("DISK-KEK"); // the same key: names have no case
        assert_ne!(newer.kid.version(), s.key.kid.version());
        assert_eq!(newer.kid.name(), "disk-kek", "printed as created");
        let latest = KeyRef::parse("disk-kek").unwrap();
        assert_eq!(s.admin.vault().describe(&latest, &s.user).unwrap().kid, newer.kid);
        let back = s.admin.vault().unwrap(&s.wrapped, &s.user).unwrap();
        assert!(back.ct_eq(&s.dek));
        // Negative: exactly that version, never the latest.
        let moved = WrappedDek { kid: newer.kid, ..s.wrapped.clone() };
        assert!(matches!(s.admin.vault().unwrap(&moved, &s.user), Err(VaultError::Corrupt(_))));
        // Two wraps of one data key differ: OAEP is randomised.
        assert_ne!(s.admin.vault().wrap(&s.key.kid, ALG, &s.dek, &s.user).unwrap().bytes, s.wrapped.bytes);
    }
}

#[test]
fn every_ciphertext_that_does_not_unwrap_gets_the_same_answer() {
    for s in scenes() {
        let mut bad = vec![
            vec![],
            s.wrapped.bytes[1..].to_vec(),
            [&s.wrapped.bytes[..], &[0]].concat(),
            vec![0; 256],
            vec![0xff; 256], // not below the modulus
        ];
        for at in [0, 100, 255] {
            let mut flipped = s.wrapped.bytes.clone();
            flipped[at] ^= 1;
            bad.push(flipped);
        }
        let answers: Vec<String> = bad
            .into_iter()
            .map(|bytes| match s.admin.vault().unwrap(&WrappedDek { bytes, ..s.wrapped.clone() }, &s.user) {
                Err(VaultError::Corrupt(message)) => message,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(answers[0].starts_with("The parameter is incorrect (key https://"), "{}", answers[0]);
        assert!(answers.iter().all(|a| *a == answers[0]), "{answers:#?}");
    }
}

#[test]
fn a_disabled_version_is_refused_and_works_again_when_enabled() {
    for s in scenes() {
        s.admin.set_enabled(&s.key.kid, false);
        let (why, message) = denial(s.admin.vault().unwrap(&s.wrapped, &s.user));
        assert_eq!(why, Denial::Disabled);
        for part in [
            "Operation unwrapKey is not allowed on a disabled key",
            s.key.kid.as_str(),
            &s.admin.words(&s.user)[0],
            &s.admin.words(&s.user)[1],
            &format!("wrapdisk key enable disk-kek --version {}", s.key.kid.version()),
        ] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        assert_eq!(denial(s.admin.vault().wrap(&s.key.kid, ALG, &s.dek, &s.user)).0, Denial::Disabled);
        // Looking is allowed, and a disabled latest version is still the latest.
        let info = s.admin.vault().describe(&KeyRef::parse("disk-kek").unwrap(), &s.user).unwrap();
        assert!(!info.enabled);
        let other = s.admin.new_version("disk-kek");
        assert!(s.admin.vault().wrap(&other.kid, ALG, &s.dek, &s.user).is_ok(), "one version only");
        s.admin.set_enabled(&s.key.kid, true);
        assert!(s.admin.vault().unwrap(&s.wrapped, &s.user).unwrap().ct_eq(&s.dek));
    }
}

#[test]
fn nothing_is_allowed_that_was_not_granted() {
    for s in scenes() {
        let vault = s.admin.vault();
        let stranger = s.admin.identity(None);
        let nobody = Call { identity: Uuid::new_v4(), ..stranger.clone() };
        let e = vault.unwrap(&s.wrapped, &nobody).unwrap_err();
        assert!(s.admin.is_unknown_caller(&e), "{e:?}");
        let other_key = s.admin.new_version("other");
        let elsewhere = s.admin.identity(Some(Some("other")));
        for (who, call) in [("no grant", &stranger), ("another key", &elsewhere)] {
            let latest = KeyRef::parse("disk-kek").unwrap();
            assert_eq!(denial(vault.unwrap(&s.wrapped, call)).0, Denial::NoPermission, "{who}");
            assert_eq!(denial(vault.wrap(&s.key.kid, ALG, &s.dek, call)).0, Denial::NoPermission, "{who}");
            assert_eq!(denial(vault.describe(&latest, call)).0, Denial::NoPermission, "{who}");
        }
        assert!(vault.wrap(&other_key.kid, ALG, &s.dek, &elsewhere).is_ok(), "its own key it may use");
        let everything = s.admin.identity(Some(None));
        assert!(vault.unwrap(&s.wrapped, &everything).unwrap().ct_eq(&s.dek));
    }
}

#[test]
fn a_disabled_identity_has_no_permission() {
    for s in scenes() {
        s.admin.set_identity_enabled(&s.user, false);
        // Elsewhere as well, by a token that was given before (RULINGS 23).
        assert_eq!(denial(s.admin.vault().unwrap(&s.wrapped, &s.user)).0, Denial::NoPermission);
        s.admin.set_identity_enabled(&s.user, true);
        assert!(s.admin.vault().unwrap(&s.wrapped, &s.user).is_ok());
    }
}

#[test]
fn names_do_not_leak_to_whoever_has_no_grant() {
    for s in scenes() {
        let stranger = s.admin.identity(None);
        let absent = |name: &str| Kid::parse(&s.key.kid.as_str().replace("disk-kek", name)).unwrap();
        let wrapped = WrappedDek { kid: absent("nope"), ..s.wrapped.clone() };
        assert_eq!(denial(s.admin.vault().unwrap(&wrapped, &stranger)).0, Denial::NoPermission);
        // With permission the same question is answered with "no such key".
        let everything = s.admin.identity(Some(None));
        let (why, message) = denial(s.admin.vault().unwrap(&wrapped, &everything));
        assert_eq!(why, Denial::Deleted);
        assert!(message.contains("nope/"), "{message}");
    }
}

#[test]
fn permission_comes_before_the_state_of_the_key_and_that_before_its_operations_and_window() {
    for s in scenes() {
        let stranger = s.admin.identity(None);
        let wrap = |call: &Call| denial(s.admin.vault().wrap(&s.key.kid, ALG, &s.dek, call)).0;
        s.admin.set_window(&s.key.kid, None, Some(NOW));
        assert_eq!(wrap(&s.user), Denial::Expired);
        s.admin.allow_only(&s.key.kid, r#"["sign"]"#);
        assert_eq!(wrap(&s.user), Denial::NoPermission);
        s.admin.set_enabled(&s.key.kid, false);
        assert_eq!(wrap(&s.user), Denial::Disabled);
        assert_eq!(wrap(&stranger), Denial::NoPermission);
    }
}

#[test]
fn outside_its_validity_a_key_still_unwraps_but_does_not_wrap() {
    for s in scenes() {
        let far = 32_503_680_000; // the year 3000
        for (not_before, expires) in [(Some(far), None), (None, Some(NOW)), (Some(0), Some(NOW))] {
            s.admin.set_window(&s.key.kid, not_before, expires);
            assert!(s.admin.vault().unwrap(&s.wrapped, &s.user).unwrap().ct_eq(&s.dek));
            let (why, message) = denial(s.admin.vault().wrap(&s.key.kid, ALG, &s.dek, &s.user));
            assert_eq!(why, Denial::Expired, "{message}");
        }
        s.admin.set_window(&s.key.kid, Some(NOW), Some(far));
        assert!(s.admin.vault().wrap(&s.key.kid, ALG, &s.dek, &s.user).is_ok());
    }
}

#[test]
fn a_key_of_another_vault_is_turned_away_as_that() {
    for s in scenes() {
        let kid = Kid::local(&Uuid::new_v4(), "disk-kek", s.key.kid.version()).unwrap();
        let foreign = WrappedDek { kid, ..s.wrapped.clone() };
        let error = s.admin.vault().unwrap(&foreign, &s.user).unwrap_err();
        assert!(matches!(error, VaultError::Rejected { code: "WrongVault", .. }), "{error:?}");
        assert_eq!(Error::from(error).kind(), ErrorKind::Denied, "exit code 3");
    }
}

#[test]
fn every_use_and_every_refusal_leaves_one_record() {
    for s in scenes() {
        let vault = s.admin.vault();
        let mut seen = s.admin.last_record().0;
        let mut expect = |operation: &str, status: u64| {
            let (seq, last_operation, last_status) = s.admin.last_record();
            assert_eq!((seq - seen, last_operation.as_str(), last_status), (1, operation, status));
            seen = seq;
        };
        vault.unwrap(&s.wrapped, &s.user).unwrap();
        expect("KeyUnwrap", 200);
        vault.wrap(&s.key.kid, ALG, &s.dek, &s.user).unwrap();
        expect("KeyWrap", 200);
        vault.describe(&(&s.key.kid).into(), &s.user).unwrap();
        expect("KeyGet", 200);
        vault.unwrap(&WrappedDek { bytes: vec![7; 256], ..s.wrapped.clone() }, &s.user).unwrap_err();
        expect("KeyUnwrap", 400);
        vault.describe(&KeyRef::parse("absent").unwrap(), &s.user).unwrap_err();
        expect("KeyGet", 403);
        let nobody = Call { identity: Uuid::new_v4(), ..s.user.clone() };
        vault.unwrap(&s.wrapped, &nobody).unwrap_err();
        let (operation, status) = s.admin.record_of_unknown_caller();
        expect(operation, status);
        s.admin.set_enabled(&s.key.kid, false);
        expect("KeyUpdate", 200);
        vault.unwrap(&s.wrapped, &s.user).unwrap_err();
        expect("KeyUnwrap", 403);
    }
}
