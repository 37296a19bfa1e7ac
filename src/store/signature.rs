//! Recognises what is already on a device, so that `create` does not overwrite it unasked (RULINGS 11).
//!
//! Magic numbers and places are those of libblkid (util-linux, libblkid/src/superblocks and partitions) and of file(1).
//! A false alarm costs a `--force`, a miss costs somebody's data: magics are matched without their checksums.

use super::BackingStore;
use crate::error::Result;
use crate::units::{ByteLen, ByteOffset};

/// Where a magic lies: bytes from the start.
type Magic = (u64, &'static [u8], &'static str);

/// In order: what is found first is reported, so the specific comes before the general (a FAT boot sector and a GPT
/// disk both end in the 55 AA of a partition table).
const MAGICS: &[Magic] = &[
    (0, b"LUKS\xba\xbe\x00\x01", "a LUKS1 container"),
    (0, b"LUKS\xba\xbe", "a LUKS2 container"),
    (0x4000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x8000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x10000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x20000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x40000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x80000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x100000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x200000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (0x400000, b"SKUL\xba\xbe", "a LUKS2 container (its second header)"),
    (3, b"-FVE-FS-", "a BitLocker volume"),
    (0, b"XFSB", "an xfs file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0x10034, b"ReIsErFs", "a reiserfs file system"),
    (0x10034, b"ReIsEr2Fs", "a reiserfs file system"),
    (0x10034, b"ReIsEr3Fs", "a reiserfs file system"),
    (0x8000, b"JFS1", "a jfs file system"),
    (0x400, b"\x10\x20\xf5\xf2", "an f2fs file system"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an erofs image"),
    (0, b"hsqs", "a squashfs image"),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs file system"),
    (3, b"NTFS    ", "an ntfs file system"),
    (3, b"EXFAT   ", "an exfat file system"),
    (0x52, b"FAT32   ", "a vfat file system"),
    (0x36, b"FAT16   ", "a vfat file system"),
    (0x36, b"FAT12   ", "a vfat file system"),
    (0x36, b"FAT     ", "a vfat file system"),
    (0x8001, b"CD001", "an iso9660 file system"),
    (0x8001, b"BEA01", "a udf file system"),
    (0x8801, b"NSR0", "a udf file system"),
    (0x018, b"LVM2 001", "an LVM2 physical volume"),
    (0x218, b"LVM2 001", "an LVM2 physical volume"),
    (0x418, b"LVM2 001", "an LVM2 physical volume"),
    (0x618, b"LVM2 001", "an LVM2 physical volume"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (md)"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "a member of a Linux RAID (md)"),
    (0xff6, b"SWAPSPACE2", "swap space"),
    (0xff6, b"SWAP-SPACE", "swap space"),
    (0xff6, b"S1SUSPEND", "swap space with a suspended system"),
    (0xff6, b"S2SUSPEND", "swap space with a suspended system"),
    (0x1ff6, b"SWAPSPACE2", "swap space"),
    (0x3ff6, b"SWAPSPACE2", "swap space"),
    (0x7ff6, b"SWAPSPACE2", "swap space"),
    (0xfff6, b"SWAPSPACE2", "swap space"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a vmdk image"),
    (0, b"vhdxfile", "a vhdx image"),
    (0x40, b"\x7f\x10\xda\xbe", "a vdi image"),
    (0, b"\x1f\x8b\x08", "gzip data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0x101, b"ustar", "a tar archive"),
    (0x200, b"EFI PART", "a GPT partition table"),
    (0x1000, b"EFI PART", "a GPT partition table"),
    // Two bytes only: last, and last of all the partition table that other formats imitate.
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x406, b"\x34\x34", "a nilfs2 file system"),
    (0x1fe, b"\x55\xaa", "an MBR partition table or a boot sector"),
];

/// Every magic of [`MAGICS`] but the farthest second LUKS headers lies in this much.
const HEAD: usize = 0x11000;

/// What is recognised, as a noun phrase.
pub(super) fn find(store: &dyn BackingStore) -> Result<Option<String>> {
    let len = store.len()?;
    let mut head = vec![0; len.to_usize().unwrap_or(HEAD).min(HEAD)];
    store.read_at(ByteOffset::ZERO, &mut head)?;
    for &(at, magic, name) in MAGICS {
        let near = usize::try_from(at).ok().and_then(|at| head.get(at..at + magic.len()));
        let matches = match near {
            Some(found) => found == magic,
            None => bytes_are(store, len, at, magic)?,
        };
        if matches {
            return Ok(Some(name.to_owned()));
        }
    }
    at_the_end(store, len)
}

/// Formats that keep their only or their spare superblock at the end, and zfs, whose place is not fixed.
fn at_the_end(store: &dyn BackingStore, len: ByteLen) -> Result<Option<String>> {
    const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
    const MD_NAME: &str = "a member of a Linux RAID (md)";
    let len_bytes = len.get();
    let last = [
        // Version 1.0: 8 to 12 KiB before the end, at a multiple of 4 KiB. Version 0.90: the last whole 64 KiB but one.
        (len_bytes.saturating_sub(8192) & !4095, MD, MD_NAME),
        ((len_bytes & !0xffff).saturating_sub(0x10000), MD, MD_NAME),
        (len_bytes.saturating_sub(512), b"EFI PART".as_slice(), "a GPT partition table (its spare copy)"),
        (len_bytes.saturating_sub(4096), b"EFI PART".as_slice(), "a GPT partition table (its spare copy)"),
    ];
    for (at, magic, name) in last {
        if bytes_are(store, len, at, magic)? {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(has_zfs_label(store, len)?.then(|| "a member of a zfs pool".to_owned()))
}

/// A zfs label holds a ring of uberblocks from 128 KiB to 256 KiB, at least 1 KiB apart, in either byte order.
fn has_zfs_label(store: &dyn BackingStore, len: ByteLen) -> Result<bool> {
    const MAGIC: u64 = 0x00ba_b10c;
    if len.get() < 0x40000 {
        return Ok(false);
    }
    let mut ring = vec![0; 0x20000];
    store.read_at(ByteOffset::from(0x20000), &mut ring)?;
    Ok(ring.chunks_exact(1024).any(|b| b[..8] == MAGIC.to_le_bytes() || b[..8] == MAGIC.to_be_bytes()))
}

fn bytes_are(store: &dyn BackingStore, len: ByteLen, at: u64, magic: &[u8]) -> Result<bool> {
    let Some(at) = ByteOffset::new(at) else { return Ok(false) };
    let Some(end) = at.checked_add(ByteLen::of(magic)).filter(|end| end.get() <= len.get()) else {
        return Ok(false);
    };
    let mut found = vec![0; end.saturating_since(at).to_usize().unwrap_or(0)];
    store.read_at(at, &mut found)?;
    Ok(found == magic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn zeros_text_and_nothing_are_not_recognised() {
        for image in [Vec::new(), vec![0; 1], vec![0; 1 << 20], b"hello world, ".repeat(50_000)] {
            assert_eq!(find(&MemoryStore::from(image)).unwrap(), None);
        }
    }

    #[test]
    fn every_magic_is_found_where_it_lies_and_not_one_byte_later() {
        for &(at, magic, name) in MAGICS {
            let mut image = vec![0; (8 << 20) + 512];
            let at = usize::try_from(at).unwrap();
            image[at..at + magic.len()].copy_from_slice(magic);
            let found = find(&MemoryStore::from(image)).unwrap();
            assert_eq!(found.as_deref(), Some(name), "magic at {at:#x}");
            let mut image = vec![0; (8 << 20) + 512];
            image[at + 1..=at + magic.len()].copy_from_slice(magic);
            assert_eq!(find(&MemoryStore::from(image)).unwrap(), None, "magic after {at:#x}");
        }
    }
}
