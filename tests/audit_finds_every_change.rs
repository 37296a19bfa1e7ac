//! Is every change to the audit found against a head that was kept elsewhere: whoever made it, wherever in the chain, and
//! whether in the vault or in an archive? The chain and its MACs are made here from their published formulas, as somebody would who has
//! the root key as well.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

mod audit_support;

use rusqlite::{Connection, params};
use wrapdisk::error::ErrorKind;
use wrapdisk::vault::local::{AuditFilter, AuditResult, IdentityKind, KeptHead};

use audit_support::{Insider, vault};

#[test]
fn a_forged_chain_passes_alone_and_never_against_a_kept_head() {
    let (dir, vault) = vault(9);
    let kept = vault.audit_head().unwrap();
    let mut insider = Insider::new(dir.path(), &vault);
    let good = insider.rows();
    insider.forge(good.clone().into_iter());
    vault.verify_audit_against(&kept).unwrap(); // the forger's tools work: nothing changed
    let mut forgeries: Vec<(String, Vec<String>)> = Vec::new();
    for at in 0..good.len() {
        let mut edited = good.clone();
        edited[at] = edited[at].replacen("202", "203", 1);
        forgeries.push((format!("record {at} edited"), edited));
        let mut cut = good.clone();
        cut.remove(at);
        forgeries.push((format!("record {at} cut"), cut));
        if at + 1 < good.len() {
            // (The last one doubled is a chain that went on.)
            let mut doubled = good.clone();
            doubled.insert(at, good[at].clone());
            forgeries.push((format!("record {at} doubled"), doubled));
        }
        if at > 0 {
            let mut swapped = good.clone();
            swapped.swap(at - 1, at);
            forgeries.push((format!("records {at} swapped"), swapped));
        }
    }
    forgeries.push(("the end cut".into(), good[..5].to_vec()));
    forgeries.push(("made anew".into(), good[..1].to_vec()));
    for (what, records) in forgeries {
        insider.forge(records.into_iter());
        vault.verify_audit().unwrap_or_else(|e| panic!("{what}: the forgery should hold by itself: {e:?}"));
        let e = vault.verify_audit_against(&kept).expect_err(&what);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{what}: {e:?}");
        let zeros = KeptHead::parse(&"0".repeat(64)).unwrap();
        assert!(vault.verify_audit_with(&[], Some(&zeros)).is_err(), "{what}: the beginning is no head");
        // By the hash alone it is found as well.
        let hash = KeptHead::parse(&kept.hex()).unwrap();
        assert!(vault.verify_audit_with(&[], Some(&hash)).is_err(), "{what}");
    }
    insider.forge(good.into_iter().chain(["{\"time\":\"2026-11-25T00:00:00.0000000Z\"}".to_owned()]));
    vault.verify_audit_against(&kept).unwrap(); // what came later does not touch what was kept
}

#[test]
fn every_flipped_byte_of_every_column_is_found() {
    let (dir, vault) = vault(4);
    let kept = vault.audit_head().unwrap();
    let insider = Insider::new(dir.path(), &vault);
    let flip = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    for seq in [1u64, 4] {
        for column in ["record", "prev_hash", "hash"] {
            let cast = if column == "record" { "CAST(? AS TEXT)" } else { "?" };
            let update = format!("UPDATE audit SET {column} = {cast} WHERE seq = ?");
            let good: Vec<u8> = insider
                .db
                .query_row(&format!("SELECT CAST({column} AS BLOB) FROM audit WHERE seq = ?1"), [seq], |r| {
                    r.get(0)
                })
                .unwrap();
            for at in 0..good.len() {
                insider.db.execute(&update, params![flip(&good, at), seq]).unwrap();
                assert!(vault.verify_audit_against(&kept).is_err(), "record {seq}, {column}, byte {at}");
            }
            insider.db.execute(&update, params![good, seq]).unwrap();
        }
    }
    vault.verify_audit_against(&kept).unwrap();
}

#[test]
fn an_archive_leaves_its_hash_as_the_beginning_and_is_verified_with_it() {
    let (dir, vault) = vault(12);
    let admin = vault.admin("archive");
    let early = KeptHead::from(&vault.audit_head().unwrap());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    assert_eq!(vault.archive_audit(5, &one, &admin).unwrap(), 5);
    let middle = vault.verify_audit().unwrap();
    assert_eq!((vault.audit(&AuditFilter::default()).unwrap()[0].seq, middle.seq), (6, 13));
    vault.verify_audit_with(&[], Some(&early)).unwrap();
    assert_eq!(vault.archive_audit(13, &two, &admin).unwrap(), 8);
    vault.create_identity("after", IdentityKind::User, &admin).unwrap();
    assert!(vault.archive_audit(3, &dir.path().join("none"), &admin).is_err(), "nothing left up to there");
    assert!(!dir.path().join("none").exists());
    assert!(vault.archive_audit(14, &one, &admin).is_err(), "never over another file");
    // Rows still cannot be deleted by accident.
    let db = Connection::open(dir.path().join("vault.db")).unwrap();
    assert!(db.execute("DELETE FROM audit", []).is_err());
    let head = vault.verify_audit_with(&[&one, &two], Some(&early)).unwrap();
    assert_eq!(head, vault.audit_head().unwrap());
    // The head that was kept lies in what is archived now: without the archives nobody can say.
    let e = vault.verify_audit_with(&[], Some(&early)).unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidInput && e.advice().unwrap().contains("--archive"), "{e:?}");
    for wrong in [&[two.as_path(), one.as_path()][..], &[&one], &[&two, &two]] {
        assert_eq!(vault.verify_audit_with(wrong, None).unwrap_err().kind(), ErrorKind::Damaged, "{wrong:?}");
    }
    // The root key's rotation takes the beginning along.
    vault.rotate_root_key(&admin).unwrap();
    vault.verify_audit_with(&[&one, &two], Some(&early)).unwrap();
    let good = std::fs::read(&one).unwrap();
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&one, bad).unwrap();
        assert!(vault.verify_audit_with(&[&one, &two], Some(&early)).is_err(), "byte {at} of an archive");
    }
    std::fs::write(&one, &good[..good.len() / 2]).unwrap();
    assert!(vault.verify_audit_with(&[&one, &two], None).is_err());
    db.execute("UPDATE audit_start SET seq = 3", []).unwrap();
    let e = vault.verify_audit().unwrap_err();
    assert!(e.to_string().contains("its beginning was not written with"), "{e:?}");
    db.execute("DELETE FROM audit_start", []).unwrap();
    assert!(vault.verify_audit().is_err());
}

#[test]
fn records_are_found_by_key_identity_result_and_time() {
    let (_dir, vault) = vault(2);
    let admin = vault.admin("test");
    let oid = vault.find_identity("user-1", &admin).unwrap().oid;
    let stranger = wrapdisk::vault::Call::new(oid, "test");
    let key = |name: &str| wrapdisk::envelope::KeyRef::parse(name).unwrap();
    for name in ["disk", "disk-2", "DISK"] {
        assert!(vault.get_key(&key(name), &stranger).is_err());
    }
    let count = |filter: AuditFilter| vault.audit(&filter).unwrap().len();
    let by_key = |name: &str| AuditFilter { key: Some(name.into()), ..AuditFilter::default() };
    assert_eq!((count(by_key("disk")), count(by_key("Disk-2")), count(by_key("dis"))), (2, 1, 0));
    let by_result = |result| AuditFilter { result: Some(result), ..AuditFilter::default() };
    assert_eq!(count(by_result(AuditResult::Refused)), 3);
    assert_eq!(count(by_result(AuditResult::Status(403))), 3);
    assert_eq!(count(by_result(AuditResult::Ok)), 3);
    assert_eq!(count(AuditFilter { identity: Some(oid), last: Some(2), ..AuditFilter::default() }), 2);
    let (long_ago, far) = (1_000_000_000, 32_503_680_000);
    let within = |since, until| AuditFilter { since, until, ..AuditFilter::default() };
    assert_eq!(count(within(Some(long_ago), Some(far))), 6);
    assert_eq!(count(within(None, Some(long_ago))) + count(within(Some(far), None)), 0);
}

#[test]
fn a_kept_head_is_read_in_the_forms_in_which_it_is_kept() {
    let hash = "0123456789abcdef".repeat(4);
    for text in [
        hash.clone(),
        format!("7 {hash}\n"),
        format!("Nov 25 host wrapdisk[1]: audit head of vault v: 7 {hash}"),
    ] {
        assert!(KeptHead::parse(&text).is_ok(), "{text}");
    }
    for text in ["", "7", &hash[1..], &format!("x {hash}"), &format!("7 {}g", &hash[1..]), "7 \u{e9}"] {
        assert_eq!(KeptHead::parse(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
    }
}
