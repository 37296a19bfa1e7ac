//! Do reader and writer agree with the test vector of ON-DISK section 15, byte for byte? Key, digest, MACs, checksums and
//! text were computed by other programs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod luks2_support;

use luks2_support::{Copy, HDR, VECTOR_JSON, VECTOR_UUID, checksum, vector_key, with_json, with_text};
use sha2::{Digest, Sha256};
use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::{Header, Holes, Kind};
use wrapdisk::store::BackingStore;
use wrapdisk::units::{ByteOffset, Sector, SectorSize};
use wrapdisk::xts::{Engine, XtsCipher};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn text() -> &'static str {
    VECTOR_JSON.trim_end()
}

#[test]
fn the_vector_in_the_tree_is_the_documents() {
    assert_eq!(text().len(), 1964);
    assert_eq!(
        hex(&Sha256::digest(text())),
        "03166dcc59332c1e833496133779248a6b8b764f43360ab69b204f86bd2fdca6"
    );
    let primary = Copy::primary(text());
    for (copy, sum) in [
        (primary.bytes(HDR), "8f3d8ab53c1b2d371c9e3882def4f1e7118850ff0cc976d8d0015ecca99ee5e4"),
        (primary.secondary().bytes(HDR), "706825b62041820c3a6d3f60193bf18d557d0555e6e0953353635e2ba7fa23d6"),
    ] {
        assert_eq!(hex(&checksum(&copy)), sum);
    }
}

#[test]
fn the_reader_takes_the_vector_and_its_key_fits() {
    let header = Header::load(&with_text(text())).unwrap();
    let key = vector_key();
    assert_eq!(header.warnings(), [""; 0]);
    assert_eq!((header.uuid(), header.seqid(), header.subsystem()), (VECTOR_UUID, 1, "wrapdisk"));
    assert_eq!((header.kind(), header.holes(), header.size().get()), (Kind::Disk, Holes::Zeros, 8_389_120));
    assert_eq!(header.segment().offset.get(), 16 << 20);
    assert!(header.discards() && !header.is_plain());
    assert!(header.check_key(&key));
    for (id, version) in [(0, "1".repeat(32)), (1, "2".repeat(32))] {
        header.check_mac(id, &key).unwrap();
        let token = header.tokens().find(|(n, _)| *n == id).unwrap().1;
        assert_eq!(token.wrapped().kid.version(), version);
    }
    assert!(header.verify(Some(0), &key).unwrap().is_empty());
    assert_eq!(hex(&Header::fingerprint(&key)), "869bf6267cdd9fdfaba01d05aa003e5e");
}

/// Every member that the MAC covers, one at a time.
#[test]
fn a_change_of_anything_that_is_authenticated_breaks_the_mac() {
    let key = vector_key();
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 7] = [
        ("kind", |j| {
            for t in ["0", "1"] {
                j["tokens"][t]["wrapdisk-kind"] = "image".into();
            }
        }),
        ("size", |j| {
            for t in ["0", "1"] {
                j["tokens"][t]["wrapdisk-size"] = "8388608".into();
            }
        }),
        ("holes", |j| {
            for t in ["0", "1"] {
                j["tokens"][t]["wrapdisk-holes"] = "none".into();
            }
        }),
        ("set", |j| j["tokens"]["0"]["wrapdisk-set"] = "default/0b8f6c0e-3d52-4c1f-9f4e-2a6d1e7c5b91".into()),
        ("kid", |j| {
            j["tokens"]["0"]["wrapdisk-kid"] =
                "https://demo.vault.example/keys/disk-kek/11111111111111111111111111111112".into();
        }),
        ("sector_size", |j| j["segments"]["0"]["sector_size"] = 512.into()),
        ("offset", |j| j["segments"]["0"]["offset"] = "16781312".into()),
    ];
    for (what, change) in changes {
        let store = with_json(change);
        store.set_len(wrapdisk::units::ByteLen::from(32 << 20)).unwrap();
        let header = Header::load(&store).unwrap();
        assert!(header.check_key(&key), "{what} is not in the digest");
        let e = header.verify(Some(0), &key).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Damaged, "{what}");
        assert_eq!(e.to_string(), "tokens.0.wrapdisk-mac: found another one, allowed the MAC of this header");
    }
}

#[test]
fn a_label_and_a_foreign_token_are_free_and_a_uuid_is_not() {
    let key = vector_key();
    let plain = Copy::primary(text());
    let load = |c: &Copy| {
        Header::load(&luks2_support::image(
            &c.bytes(HDR),
            &c.secondary().bytes(HDR),
            luks2_support::VECTOR_FILE,
        ))
        .unwrap()
    };
    load(&Copy { label: b"my disk".to_vec(), seqid: 9, ..plain.clone() }).verify(Some(0), &key).unwrap();
    let foreign = with_json(|j| j["tokens"]["7"] = serde_json::json!({"type": "clevis", "keyslots": []}));
    Header::load(&foreign).unwrap().verify(Some(1), &key).unwrap();
    let other = Copy { uuid: b"6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f32".to_vec(), ..plain };
    let e = load(&other).verify(Some(0), &key).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert!(e.advice().unwrap().contains("luksUUID"), "{e:?}");
}

/// The text is written as it was read, so a commit changes seqid, salt and checksum and nothing else.
#[test]
fn the_writer_keeps_the_text_and_counts_the_commit() {
    let store = with_text(text());
    let mut header = Header::load(&store).unwrap();
    header.commit(&store).unwrap();
    for copy in 0..2u32 {
        let mut bytes = vec![0; HDR];
        store.read_at(ByteOffset::from(copy * u32::try_from(HDR).unwrap()), &mut bytes).unwrap();
        assert_eq!(&bytes[4096..4096 + text().len()], text().as_bytes());
        assert!(bytes[4096 + text().len()..].iter().all(|b| *b == 0));
        assert_eq!(bytes[16..24], 2u64.to_be_bytes());
        assert_eq!(bytes[448..480], checksum(&bytes));
        let salt = if copy == 0 { [0xa1; 64] } else { [0xa2; 64] };
        assert_ne!(bytes[104..168], salt, "a commit needs a fresh salt");
    }
    Header::load(&store).unwrap().verify(Some(0), &vector_key()).unwrap();
}

#[test]
fn zeros_encrypt_to_what_the_document_says() {
    for engine in Engine::available() {
        let cipher = XtsCipher::new(&vector_key(), SectorSize::B4096, engine).unwrap();
        let mut sectors = vec![0; 8192];
        cipher.encrypt(Sector::ZERO, &mut sectors);
        assert_eq!(hex(&sectors[..16]), "743f61b5f3d6217f408745c90463e083");
        assert_eq!(hex(&sectors[4096..4112]), "dd779be2bc88bc9d97c8f72fdb559a8d");
        assert_eq!(
            hex(&Sha256::digest(&sectors)),
            "f3cc3d00edfe34b048652b68b5fc661d9bbaa50b2e62e249349af8fde3cf8bc3"
        );
    }
}
