//! What must not be refused: the other half of every rule.

use serde_json::{Value, json};
use wrapdisk::luks2::{Header, Holes, Kind};
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset, SectorSize};

use crate::luks2_support::{
    Copy, HDR, SMALL_FILE, image, json_with_slots, seal_macs, slot, small, small_json, vector_key,
};

#[track_caller]
fn opens(json: &Value) -> Header {
    let header = Header::load(&small(&json.to_string())).unwrap();
    assert!(header.check_key(&vector_key()));
    header
}

#[test]
fn both_sector_sizes_and_every_kind() {
    for (sector, size) in [(512, SectorSize::B512), (4096, SectorSize::B4096)] {
        for (name, kind) in [("disk", Kind::Disk), ("snapshot", Kind::Snapshot), ("image", Kind::Image)] {
            for (text, holes) in [("zeros", Holes::Zeros), ("none", Holes::None)] {
                let mut json = small_json();
                json["segments"]["0"]["sector_size"] = sector.into();
                for id in ["0", "1"] {
                    json["tokens"][id]["wrapdisk-kind"] = name.into();
                    json["tokens"][id]["wrapdisk-holes"] = text.into();
                }
                seal_macs(&mut json);
                let header = opens(&json);
                assert_eq!(
                    (header.segment().sector_size, header.kind(), header.holes()),
                    (size, kind, holes)
                );
                assert!(header.verify(Some(0), &vector_key()).unwrap().is_empty());
            }
        }
    }
}

/// A container of each header size, its data behind it.
fn sized(hdr: usize) -> (Vec<u8>, Vec<u8>, usize) {
    let mut json = small_json();
    json["config"]["json_size"] = (hdr - 4096).to_string().into();
    json["config"]["keyslots_size"] = "0".into();
    json["segments"]["0"]["offset"] = (2 * hdr).to_string().into();
    seal_macs(&mut json);
    let primary = Copy { hdr_size: hdr as u64, ..Copy::primary(&json.to_string()) };
    (primary.bytes(hdr), primary.secondary().bytes(hdr), 2 * hdr + 8192)
}

#[test]
fn every_header_size_and_a_secondary_at_every_place_when_the_primary_is_torn() {
    for hdr in [16384, 32768, 65536, 131_072] {
        let (primary, secondary, len) = sized(hdr);
        let header = Header::load(&image(&primary, &secondary, len)).unwrap();
        assert_eq!(header.warnings(), [""; 0]);
        assert_eq!(header.area_len().get(), 2 * hdr as u64);
        for torn in [0, 5, 8, 16, 500, 4095, 4096, 6000, hdr - 1] {
            // Old bytes up to there are lost, and bytes that were never a header come in.
            for from in [0..torn, torn..hdr] {
                let mut primary = primary.clone();
                primary[from.clone()].fill(0xa5);
                if from.is_empty() {
                    continue;
                }
                let header = Header::load(&image(&primary, &secondary, len)).unwrap();
                assert!(header.verify(Some(0), &vector_key()).unwrap().is_empty(), "{hdr}: {from:?}");
                assert!(header.warnings()[0].starts_with("the primary header is bad: "), "{from:?}");
            }
        }
    }
}

/// Also on a file that was never cleared: only a copy whose own offset is its place counts.
#[test]
fn a_stray_secondary_at_another_place_is_passed_over() {
    let (mut primary, secondary, len) = sized(65536);
    primary[..HDR].fill(0);
    // A whole secondary of another header size, where the big header's JSON area is, with a wrong offset in it.
    let stray = Copy { hdr_offset: 32768, ..Copy::primary("{}").secondary() };
    let store = image(&primary, &secondary, len);
    store.write_at(ByteOffset::from(16384), &stray.bytes(HDR)).unwrap();
    let header = Header::load(&store).unwrap();
    assert_eq!(header.area_len().get(), 131_072);
}

#[test]
fn a_plain_container_has_the_size_that_the_file_leaves() {
    for (sector, len, size) in [(4096, 8192, 8192), (4096, 8191, 4096), (512, 8191, 7680), (512, 512, 512)] {
        let mut json = small_json();
        json["tokens"] = json!({});
        json["segments"]["0"]["sector_size"] = sector.into();
        let store = small(&json.to_string());
        store.set_len(ByteLen::new((SMALL_FILE - 8192 + len) as u64).unwrap()).unwrap();
        let header = Header::load(&store).unwrap();
        assert!(header.is_plain());
        assert_eq!((header.size().get(), header.holes(), header.kind()), (size, Holes::None, Kind::Disk));
    }
}

#[test]
fn flags_nobody_knows_are_ignored_and_kept() {
    let mut json = small_json();
    json["config"]["flags"] = json!(["no-read-workqueue", "x"]);
    assert!(!opens(&json).discards());
    json["config"]["flags"] = json!(["no-read-workqueue", "allow-discards", "x"]);
    let store = small(&json.to_string());
    let mut header = Header::load(&store).unwrap();
    assert!(header.discards());
    header.seal(&vector_key()).unwrap();
    header.commit(&store).unwrap();
    assert_eq!(stored(&store)["config"]["flags"], json!(["no-read-workqueue", "x"]));
    json["config"].as_object_mut().unwrap().shift_remove("flags");
    assert!(!opens(&json).discards());
}

#[test]
fn no_requirements_in_both_spellings_and_a_digest_under_any_name() {
    let mut json = small_json();
    json["config"]["requirements"] = json!({"mandatory": []});
    json["digests"] = json!({ "31": json["digests"]["0"] });
    let header = opens(&json);
    assert!(header.verify(Some(0), &vector_key()).unwrap().is_empty());
}

/// The JSON text of a store's primary.
fn stored(store: &MemoryStore) -> Value {
    let bytes = store.snapshot();
    let text = &bytes[4096..HDR];
    let end = text.iter().position(|b| *b == 0).unwrap();
    serde_json::from_slice(&text[..end]).unwrap()
}

#[test]
fn unknown_members_and_foreign_tokens_survive_a_rewrite_in_their_order() {
    let mut json = json_with_slots(&[slot(0)]);
    json["zz-top"] = json!({"b": [1, null, true, "\u{e9}/\u{1f511}"], "a": {}});
    json["config"]["note"] = json!("kept");
    json["config"]["a-list"] = json!([[], {}]);
    json["tokens"]["0"]["systemd-note"] = json!(["x"]);
    json["tokens"]["2"] =
        json!({"type": "systemd-tpm2", "keyslots": ["0"], "tpm2-blob": "AAAA", "tpm2-pcrs": [7]});
    json["tokens"]["31"] = json!({"type": "clevis", "keyslots": [], "jwe": {"protected": "e30"}});
    // As another writer may have left it: with white space and escapes.
    let text = serde_json::to_string_pretty(&json).unwrap().replace('/', "\\/");
    let store = small(&text);
    let mut header = Header::load(&store).unwrap();
    assert_eq!(header.foreign_tokens(), [(2, "systemd-tpm2".to_owned()), (31, "clevis".to_owned())]);
    header.commit(&store).unwrap();
    let bytes = store.snapshot();
    let compact = json.to_string();
    assert_eq!(&bytes[4096..4096 + compact.len()], compact.as_bytes(), "compact, `/` as it is, in order");
    assert_eq!(bytes[4096 + compact.len()], 0);

    // And a change of ours touches only what it is about.
    header.seal(&vector_key()).unwrap();
    header.commit(&store).unwrap();
    let sealed = stored(&store);
    for pointer in
        ["/zz-top", "/config/note", "/config/a-list", "/tokens/0/systemd-note", "/tokens/2", "/tokens/31"]
    {
        assert_eq!(sealed.pointer(pointer), json.pointer(pointer), "{pointer}");
    }
    assert_eq!(sealed["tokens"]["0"]["wrapdisk-holes"], "none");
}

/// The longest of everything, at once: 47 bytes of label, 31 members, a seqid near its end.
#[test]
fn the_largest_values() {
    let mut json = small_json();
    json["tokens"]["0"]["wrapdisk-set"] = "s".repeat(128).into();
    json["tokens"]["0"]["wrapdisk-kid"] =
        format!("https://{}:65535/keys/{}/{}", "h".repeat(300), "n".repeat(127), "v".repeat(60)).into();
    json["digests"]["0"]["iterations"] = 1000.into();
    seal_macs(&mut json);
    let primary = Copy {
        label: "l".repeat(47).into(),
        subsystem: "s".repeat(47).into(),
        seqid: i64::MAX as u64,
        ..Copy::primary(&json.to_string())
    };
    let store = image(&primary.bytes(HDR), &primary.secondary().bytes(HDR), SMALL_FILE);
    let mut header = Header::load(&store).unwrap();
    assert_eq!((header.label().len(), header.subsystem().len(), header.seqid()), (47, 47, i64::MAX as u64));
    assert!(header.verify(Some(0), &vector_key()).unwrap().is_empty());
    // Counting on would make a header that nobody may read.
    let before = store.snapshot();
    let e = header.commit(&store).unwrap_err();
    assert_eq!(
        e.to_string(),
        "seqid: found 9223372036854775807, allowed one that can be counted up: this header is final"
    );
    assert!(store.snapshot() == before, "nothing was written");
}
