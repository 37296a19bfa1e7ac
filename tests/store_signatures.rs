//! Does `find_signature` recognise what people have on their devices? Each image is made by the format's own tool, or is
//! the part of such an image that libblkid needs; libblkid (`blkid -p`) judges every one of them too.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod store_support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use store_support::{LoopDevice, open, run, sparse, text};
use wrapdisk::store::{Access, FileStore};

const MIB: u64 = 1 << 20;

fn signature(path: &Path) -> Option<String> {
    open(path, Access::ReadOnly).find_signature().unwrap()
}

/// What libblkid sees: file system or partition table; nothing when it recognises nothing.
fn blkid(path: &Path) -> String {
    let tags = ["-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE"];
    let done = Command::new("blkid").args(tags).arg(path).output().expect("blkid must be installed");
    String::from_utf8(done.stdout).unwrap().lines().next().unwrap_or_default().to_owned()
}

/// A sparse file with these bytes in it.
fn image(dir: &Path, name: &str, len: u64, parts: &[(u64, Vec<u8>)]) -> PathBuf {
    let path = dir.join(name);
    sparse(&path, len);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    path
}

fn check(path: &Path, judge: &str, expected: &str) {
    assert_eq!(blkid(path), judge, "{}: the image itself is not what it should be", path.display());
    assert_eq!(signature(path).as_deref(), Some(expected), "{}", path.display());
}

#[test]
fn what_a_formats_own_tool_made_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let pass = dir.path().join("pass");
    std::fs::write(&pass, "secret").unwrap();
    let luks = |version: &'static str| {
        vec!["luksFormat", "-q", "--type", version, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    };
    let ext = "an ext2, ext3 or ext4 file system";
    for (name, mib, tool, args, judge, expected) in [
        ("ext2", 16, "mkfs.ext2", vec!["-q"], "ext2", ext),
        ("ext3", 16, "mkfs.ext3", vec!["-q"], "ext3", ext),
        ("ext4", 16, "mkfs.ext4", vec!["-q"], "ext4", ext),
        ("xfs", 320, "mkfs.xfs", vec!["-q"], "xfs", "an xfs file system"),
        ("btrfs", 128, "mkfs.btrfs", vec!["-q"], "btrfs", "a btrfs file system"),
        ("swap", 16, "mkswap", vec!["-q"], "swap", "swap space"),
        ("luks1", 32, "cryptsetup", luks("luks1"), "crypto_LUKS", "a LUKS1 container"),
        ("luks2", 32, "cryptsetup", luks("luks2"), "crypto_LUKS", "a LUKS2 container"),
    ] {
        let path = image(dir.path(), name, mib * MIB, &[]);
        assert_eq!(signature(&path), None, "{name}: before");
        let file = [text(&path), text(&pass)];
        let operands = if tool == "cryptsetup" { &file[..] } else { &file[..1] };
        run(tool, &[&args[..], operands].concat());
        check(&path, judge, expected);
    }
}

#[test]
fn a_luks2_container_is_recognised_by_its_second_header_alone() {
    let dir = tempfile::tempdir().unwrap();
    let pass = dir.path().join("pass");
    std::fs::write(&pass, "secret").unwrap();
    for (kib, at) in [("16k", 0x4000), ("4m", 0x40_0000)] {
        let path = image(dir.path(), kib, 32 * MIB, &[]);
        let args = ["luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        run("cryptsetup", &[&args[..], &["--luks2-metadata-size", kib, text(&path), text(&pass)]].concat());
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 4096], 0).unwrap();
        assert_eq!(
            signature(&path).as_deref(),
            Some("a LUKS2 container (its second header)"),
            "second header at {at:#x}"
        );
    }
}

/// Name, length in MiB, bytes (hexadecimal) by place, what libblkid calls it, what we call it.
type Excerpt = (&'static str, u64, &'static [(u64, &'static str)], &'static str, &'static str);

/// Excerpts of images that mkfs.vfat 4.2, mkfs.ntfs 2022.10, mkfs.exfat 1.2, sgdisk 1.0.9 and pvcreate 2.03.16 made.
#[test]
fn what_libblkid_recognises_in_an_excerpt_is_recognised() {
    #[rustfmt::skip]
    let excerpts: [Excerpt; 8] = [
        ("fat12", 4, &[(0, "eb3c906d6b66732e66617400020401000200020020f806002000020000000000"),
            (0x20, "00000000800029 51ae22c84e4f204e414d452020202046415431322020200e1f"), (0x1fe, "55aa")],
            "vfat", "a vfat file system"),
        ("fat16", 64, &[(0, "eb3c906d6b66732e66617400020404000200020000f880002000080000000000"),
            (0x20, "000002008000 29c76722c84e4f204e414d452020202046415431362020200e1f"), (0x1fe, "55aa")],
            "vfat", "a vfat file system"),
        ("fat32", 600, &[(0, "eb58906d6b66732e66617400020820000200000000f800003f00200000000000"),
            (0x20, "d0bf1200b0040000000000000200000001000600000000000000000000000000"),
            (0x40, "8000299fd321c84e4f204e414d4520202020 46415433322020200e1fbe777cac"), (0x1fe, "55aa")],
            "vfat", "a vfat file system"),
        ("ntfs", 64, &[(0, "0000004e544653202020200002080000"), (0x28, "0000010000000000"), (0x30, "04"),
            (0x40, "f6"), (0x4000, "46494c45"), (0x4c00, "46494c45")],
            "ntfs", "an ntfs file system"),
        ("exfat", 64, &[(0, "00000045584641542020200000000000")], "exfat", "an exfat file system"),
        ("gpt", 64, &[(0x1c0, "0000ee"), (0x1fe, "55aa"),
            (0x200, "4546492050415254000001005c000000977d859200000000 0100000000000000"),
            (0x220, "ffff0100000000002200000000000000deff01000000000049805eb8841a4e43"),
            (0x240, "b5f6418e5700ed3f02000000000000008000000080000000bdc44ce100000000"),
            (0x400, "af3dc60f838472478e793d69d8477de4a495b78c5dd341488936b136fee0bbfd"),
            (0x420, "0008000000000000deff010000000000")],
            "gpt", "a GPT partition table"),
        ("mbr", 64, &[(0x1fe, "55aa")], "dos", "an MBR partition table or a boot sector"),
        ("lvm", 64, &[(0x200, "4c4142454c4f4e4501000000000000000e76058c200000004c564d3220303031"),
            (0x220, "5445546264674855776753755369555a6e3733794365316b73314a57646b656c"),
            (0x240, "00000004000000000000100000000000"), (0x268, "0010"), (0x270, "00f00f"), (0x288, "02")],
            "LVM2_member", "an LVM2 physical volume"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (name, mib, parts, judge, expected) in excerpts {
        let parts: Vec<_> = parts.iter().map(|(at, hex)| (*at, unhex(hex))).collect();
        check(&image(dir.path(), name, mib * MIB, &parts), judge, expected);
    }
}

/// md keeps its superblock in four places (md(4)); lengths are ragged, since two places count from the end.
#[test]
fn a_raid_member_is_recognised_whatever_its_metadata_version() {
    let dir = tempfile::tempdir().unwrap();
    let len = 5 * MIB + 3 * 4096 + 512;
    // struct mdp_superblock_1: magic, major_version = 1, ... super_offset (in sectors) at byte 144.
    let version_1 =
        |at: u64| vec![(at, unhex("fc4e2ba901000000")), (at + 144, (at / 512).to_le_bytes().to_vec())];
    let end_1_0 = 5 * MIB + 3 * 4096 - 8192;
    // struct mdp_superblock_s: magic, major 0, minor 90; the last whole 64 KiB.
    let version_0 = vec![(5 * MIB - 65536, unhex("fc4e2ba9000000005a000000"))];
    for (name, parts) in
        [("0.90", version_0), ("1.0", version_1(end_1_0)), ("1.1", version_1(0)), ("1.2", version_1(4096))]
    {
        check(&image(dir.path(), name, len, &parts), "linux_raid_member", "a member of a Linux RAID (md)");
    }
}

#[test]
fn a_partition_table_is_recognised_by_its_spare_copy_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "gpt", 8 * MIB, &[(8 * MIB - 512, b"EFI PART".to_vec())]);
    assert_eq!(signature(&path).as_deref(), Some("a GPT partition table (its spare copy)"));
}

#[test]
fn compressed_data_and_archives_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "just some text").unwrap();
    assert_eq!(signature(&plain), None);
    run("tar", &["-C", text(dir.path()), "-cf", text(&dir.path().join("tar")), "plain"]);
    run("gzip", &[text(&plain)]);
    assert_eq!(signature(&dir.path().join("plain.gz")).as_deref(), Some("gzip data"));
    assert_eq!(signature(&dir.path().join("tar")).as_deref(), Some("a tar archive"));
}

#[test]
fn nothing_is_recognised_where_there_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, 511, 512, 4095, 70_000, 64 * MIB] {
        let path = image(dir.path(), &len.to_string(), len, &[]);
        assert_eq!((signature(&path), blkid(&path).as_str()), (None, ""), "{len} zeros");
    }
    // Magics one byte off.
    let off = [
        (1, b"XFSB".to_vec()),
        (0x439, vec![0x53, 0xef]),
        (0x1001, unhex("fc4e2ba9")),
        (0x1fd, vec![0x55, 0xaa]),
    ];
    let path = image(dir.path(), "off", 8 * MIB, &off);
    assert_eq!((signature(&path), blkid(&path).as_str()), (None, ""));
}

#[test]
fn a_device_is_asked_like_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "image", 16 * MIB, &[]);
    let device = LoopDevice::over(&path);
    let ask = || -> Option<String> {
        let store: FileStore = open(device.path(), Access::ReadWrite);
        store.find_signature().unwrap()
    };
    assert_eq!(ask(), None);
    run("mkfs.ext4", &["-q", text(device.path())]);
    assert_eq!(ask().as_deref(), Some("an ext2, ext3 or ext4 file system"));
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}
