//! Rows 1 and 2 of the table: files that are no container, and the fields of the binary header.

use wrapdisk::error::ErrorKind;
use wrapdisk::luks2::Header;
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::ByteLen;

use crate::luks2_support::hostile::refusal;
use crate::luks2_support::{Copy, HDR, SMALL_FILE, image, small, small_json};

fn good() -> Copy {
    Copy::primary(&small_json().to_string())
}

/// How a container is refused whose two copies have the same fault.
#[track_caller]
fn both(change: impl Fn(&mut Copy)) -> wrapdisk::error::Error {
    let (mut primary, mut secondary) = (good(), good().secondary());
    change(&mut primary);
    change(&mut secondary);
    refusal(image(&primary.bytes(HDR), &secondary.bytes(HDR), SMALL_FILE))
}

#[test]
fn what_is_no_container_at_all() {
    let mut ext4 = vec![0; SMALL_FILE];
    ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    let noise: Vec<u8> = (0..SMALL_FILE).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
    for bytes in [Vec::new(), b"LUK".to_vec(), vec![0; 7], vec![0; 8], vec![0; SMALL_FILE], ext4, noise] {
        let e = refusal(MemoryStore::from(bytes));
        assert_eq!(e.to_string(), "not a LUKS2 container: no valid header copy was found");
        assert_eq!(e.kind(), ErrorKind::Damaged);
        assert_eq!(e.advice(), Some("check the name; make a disk with: wrapdisk create FILE --size SIZE"));
    }
}

#[test]
fn luks1() {
    // What cryptsetup luksFormat --type luks1 begins with, whatever lies where a secondary would be.
    let mut bytes = small(&small_json().to_string()).snapshot();
    bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
    let e = refusal(MemoryStore::from(bytes));
    assert_eq!((e.to_string().as_str(), e.kind()), ("version: found 1, allowed 2", ErrorKind::Unsupported));
    assert_eq!(e.advice(), Some("convert it with: cryptsetup convert --type luks2"));
    let e = both(|c| c.version = 3);
    assert_eq!((e.to_string().as_str(), e.kind()), ("version: found 3, allowed 2", ErrorKind::Unsupported));
}

/// With the file cut at every place where something begins or ends.
#[test]
fn a_file_shorter_than_its_headers_or_its_data() {
    let whole = small(&small_json().to_string()).snapshot();
    let secondary = "secondary header: found nothing, allowed a copy at 16384, 32768, 65536 or 131072";
    let truncated = |data: usize| {
        format!("size: found {data} bytes of data, allowed at least 8192: the file is truncated")
    };
    let none = "not a LUKS2 container: no valid header copy was found".to_owned();
    let bad = |len: usize, needed: usize| {
        format!("both header copies are bad: file: found {len} bytes, allowed at least {needed}; {secondary}")
    };
    let data = SMALL_FILE - 8192;
    for (len, message) in [
        (0, none.clone()),
        (5, none),
        (6, bad(6, 4096)),
        (4095, bad(4095, 4096)),
        (4096, bad(4096, 16384)),
        (HDR - 1, bad(16383, 16384)),
        (HDR, truncated(0)),
        (2 * HDR - 1, truncated(0)),
        (2 * HDR, truncated(0)),
        (data - 1, truncated(0)),
        (data, truncated(0)),
        (SMALL_FILE - 4096, truncated(4096)),
        (SMALL_FILE - 1, truncated(8191)),
    ] {
        let e = refusal(MemoryStore::from(whole[..len].to_vec()));
        assert_eq!((e.to_string(), e.kind()), (message, ErrorKind::Damaged), "{len} bytes");
    }
    Header::load(&MemoryStore::from(whole.clone())).unwrap();
    let longer = MemoryStore::from(whole);
    longer.set_len(ByteLen::from(3 << 20)).unwrap();
    assert_eq!(Header::load(&longer).unwrap().size().get(), 8192, "the tail is ignored");
}

/// Twice the same fault: the primary's words, then the secondary's.
#[track_caller]
fn damaged_twice(message: &str, change: impl Fn(&mut Copy)) {
    let e = both(change);
    assert_eq!(e.to_string(), format!("both header copies are bad: {message}; {message}"));
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert_eq!(e.advice(), Some("put a backup back with: wrapdisk header restore FILE BACKUP"));
}

#[test]
fn fields_of_the_binary_header() {
    for size in [0, 4096, 8192, 16383, 16385, 24576, 131_073, 262_145, 8 << 20, u64::MAX] {
        let allowed = "allowed 16384, 32768, 65536 or 131072";
        damaged_twice(&format!("hdr_size: found {size}, {allowed}"), |c| c.hdr_size = size);
    }
    for seqid in [0, 1 << 63, u64::MAX] {
        damaged_twice(&format!("seqid: found {seqid}, allowed 1 to 2^63-1"), |c| c.seqid = seqid);
    }
    damaged_twice("version: found 0, allowed 2", |c| c.version = 0);
    damaged_twice("checksum algorithm: found \"\", allowed \"sha256\"", |c| c.algorithm.clear());
    for (uuid, found) in [
        ("", "\"\""),
        ("6f2d1c84", "\"6f2d1c84\""),
        ("6F2D1C84-9A3B-4E57-8C10-5D7E9B2A4F31", "\"6F2D1C84-9A3B-4E57-8C10-5D7E9B2A4F31\""),
        ("6f2d1c849a3b4e578c105d7e9b2a4f31", "\"6f2d1c849a3b4e578c105d7e9b2a4f31\""),
        ("{6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31}", "\"{6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31}\""),
        ("6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f3g", "\"6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f3g\""),
    ] {
        let message = format!("uuid: found {found}, allowed 36 characters, lower case, canonical");
        damaged_twice(&message, |c| c.uuid = uuid.into());
    }
}

#[test]
fn strings_without_an_end_or_with_control_characters() {
    let allowed = "allowed printable text that ends with a NUL";
    let full = "x".repeat(48);
    damaged_twice(&format!("label: found \"{full}\", {allowed}"), |c| c.label = full.clone().into());
    damaged_twice(&format!("subsystem: found \"{full}\", {allowed}"), |c| c.subsystem = full.clone().into());
    damaged_twice(&format!("uuid: found \"{}\", {allowed}", "x".repeat(40)), |c| c.uuid = [b'x'; 40].into());
    damaged_twice(&format!("checksum algorithm: found \"{}\", {allowed}", "x".repeat(32)), |c| {
        c.algorithm = [b'x'; 32].into();
    });
    damaged_twice(&format!("label: found \"a\\u{{1b}}[2J\", {allowed}"), |c| c.label = b"a\x1b[2J".to_vec());
    damaged_twice(&format!("label: found \"\u{fffd}\", {allowed}"), |c| c.label = b"\xff".to_vec());
    damaged_twice(&format!("subsystem: found \"a\\nb\", {allowed}"), |c| c.subsystem = b"a\nb".to_vec());
}

/// Valid LUKS2, and not for us: not damage.
#[test]
fn checksums_and_sizes_of_other_kinds() {
    for name in ["sha512", "SHA256", "sha1"] {
        let e = both(|c| c.algorithm = name.into());
        assert_eq!(e.to_string(), format!("checksum algorithm: found \"{name}\", allowed \"sha256\""));
        assert_eq!(e.kind(), ErrorKind::Unsupported);
    }
    for size in [256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20] {
        let e = both(|c| c.hdr_size = size);
        assert_eq!(e.to_string(), format!("hdr_size: found {size}, allowed 16384, 32768, 65536 or 131072"));
        assert_eq!(e.kind(), ErrorKind::Unsupported);
    }
}

/// The warning that is left when one copy is good and the other is not.
#[track_caller]
fn warned(primary: &[u8], secondary: &[u8]) -> String {
    let header = Header::load(&image(primary, secondary, SMALL_FILE)).unwrap();
    assert_eq!(header.warnings().len(), 1);
    header.warnings()[0].clone()
}

#[test]
fn a_copy_in_the_wrong_place() {
    let (p, s) = (good(), good().secondary());
    let (pb, sb) = (p.bytes(HDR), s.bytes(HDR));
    let bad = |c: &Copy| c.bytes(HDR);
    assert_eq!(
        warned(&bad(&Copy { hdr_offset: 16384, ..p.clone() }), &sb),
        "the primary header is bad: hdr_offset: found 16384, allowed 0"
    );
    assert_eq!(
        warned(&pb, &bad(&Copy { hdr_offset: 0, ..s.clone() })),
        "the secondary header is bad: hdr_offset: found 0, allowed 16384"
    );
    assert_eq!(
        warned(&pb, &bad(&Copy { hdr_size: 32768, ..s })),
        "the secondary header is bad: hdr_size: found 32768, allowed 16384, where this copy lies"
    );
    // Each other's magic.
    assert_eq!(
        warned(&pb, &pb),
        "the secondary header is bad: magic: found \"LUKS\\xba\\xbe\", allowed \"SKUL\\xba\\xbe\""
    );
    assert_eq!(
        warned(&sb, &sb),
        "the primary header is bad: magic: found \"SKUL\\xba\\xbe\", allowed \"LUKS\\xba\\xbe\""
    );
    assert_eq!(
        warned(&bad(&Copy { magic: *b"luks\xba\xbe", ..p }), &sb),
        "the primary header is bad: magic: found \"luks\\xba\\xbe\", allowed \"LUKS\\xba\\xbe\""
    );
}

/// Any byte of a copy but its checksum field's unused half.
#[test]
fn a_checksum_that_does_not_match() {
    let (pb, sb) = (good().bytes(HDR), good().secondary().bytes(HDR));
    let said = "the primary header is bad: checksum: found another one, allowed the SHA-256 of the header";
    for at in [104, 167, 264, 300, 447, 448, 479, 512, 4095, 4096, 5000, 12000, HDR - 1] {
        let mut torn = pb.clone();
        torn[at] ^= 1;
        assert_eq!(warned(&torn, &sb), said, "byte {at}");
        let mut other = sb.clone();
        other[at] ^= 1;
        let e = refusal(image(&torn, &other, SMALL_FILE));
        let message = "checksum: found another one, allowed the SHA-256 of the header";
        assert_eq!(e.to_string(), format!("both header copies are bad: {message}; {message}"), "byte {at}");
    }
    for at in 480..512 {
        let mut same = pb.clone();
        same[at] = 0xff;
        assert_eq!(warned(&same, &pb).matches("primary").count(), 0, "byte {at} is in no checksum");
    }
}

/// Only checksum and binary fields choose a copy: a chosen JSON that is refused is not replaced by the other one.
#[test]
fn a_refused_json_does_not_fall_back_to_the_other_copy() {
    let linear = small_json().to_string().replace("\"crypt\"", "\"linear\"");
    for (seqid, primary_is_bad) in [(1, true), (2, true), (2, false)] {
        let (mut p, mut s) = (good(), good().secondary());
        let bad = if primary_is_bad { &mut p } else { &mut s };
        bad.text = linear.clone().into();
        bad.seqid = seqid;
        let e = refusal(image(&p.bytes(HDR), &s.bytes(HDR), SMALL_FILE));
        assert_eq!(e.to_string(), "segments.0.type: found \"linear\", allowed \"crypt\"");
    }
}
