//! Does a disk behave as plain memory does, whatever the cache, the sector size and the holes? Random operations from
//! several threads against a `Vec<u8>`, with a cache far smaller than the disk.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use wrapdisk::cache::BlockCache;
use wrapdisk::disk::PlainDisk;
use wrapdisk::error::ErrorKind;
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const OFFSET: u32 = 8192;

struct Rig {
    disk: PlainDisk,
    store: Arc<MemoryStore>,
    key: VolumeKey,
    sector: SectorSize,
}

fn rig(size: u64, sector: SectorSize, cache: u32, zero_holes: bool) -> Rig {
    let store =
        Arc::new(MemoryStore::new(usize::try_from(u64::from(OFFSET) + size.next_multiple_of(4096)).unwrap()));
    let key = VolumeKey::generate().unwrap();
    let cipher = XtsCipher::new(&key, sector, Engine::best()).unwrap();
    let layout = Layout {
        offset: ByteOffset::from(OFFSET),
        sector_size: sector,
        size: ByteLen::new(size).unwrap(),
        zero_holes,
        discards: zero_holes,
    };
    let volume = EncryptedVolume::new(Arc::clone(&store) as _, layout, Gate::open(cipher)).unwrap();
    let disk = PlainDisk::new(volume, BlockCache::new(ByteLen::from(cache)).unwrap(), false);
    if !zero_holes {
        disk.overwrite(|_| ()).unwrap();
    }
    Rig { disk, store, key, sector }
}

fn read(disk: &PlainDisk, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    let n = disk.read_at(ByteOffset::new(at).unwrap(), &mut buf).unwrap();
    buf.truncate(n);
    buf
}

#[derive(Clone, Debug)]
enum Op {
    Read {
        at: u64,
        len: usize,
    },
    Write {
        at: u64,
        len: usize,
        fill: u8,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Zero {
        at: u64,
        len: u64,
    },
    Sync,
    /// Closes the gate and opens it again with the same key: the cache must come back empty, not stale.
    Fence,
}

const SIZE: u64 = 1 << 20;

/// Offsets that like the edges of sectors and blocks, lengths from nothing to past the cache's bypass.
fn position() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..SIZE,
        (0..SIZE / 512).prop_map(|n| n * 512),
        (0..SIZE / 4096).prop_map(|n| n * 4096),
        Just(SIZE - 1),
        Just(SIZE)
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..10_000, Just(512), Just(4096), Just(4097), 120_000usize..300_000]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (position(), length()).prop_map(|(at, len)| Op::Read { at, len }),
        4 => (position(), length(), any::<u8>()).prop_map(|(at, len, fill)| Op::Write { at, len, fill }),
        1 => (position(), length()).prop_map(|(at, len)| Op::Discard { at, len: len as u64 }),
        1 => (position(), length()).prop_map(|(at, len)| Op::Zero { at, len: len as u64 }),
        1 => Just(Op::Sync),
        1 => Just(Op::Fence),
    ]
}

fn apply(rig: &Rig, model: &mut [u8], op: &Op) -> Result<(), TestCaseError> {
    let fits = |at: u64, len: u64| at + len <= model.len() as u64;
    match *op {
        Op::Read { at, len } => {
            let start = usize::try_from(at).unwrap().min(model.len());
            let end = (start + len).min(model.len());
            prop_assert_eq!(&read(&rig.disk, at, len), &model[start..end], "read {} at {}", len, at);
        }
        Op::Write { at, len, fill } => {
            let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add(u8::try_from(i % 251).unwrap())).collect();
            let done = rig.disk.write_at(ByteOffset::new(at).unwrap(), &data);
            if fits(at, len as u64) {
                prop_assert!(done.is_ok());
                model[usize::try_from(at).unwrap()..][..len].copy_from_slice(&data);
            } else {
                prop_assert_eq!(done.unwrap_err().kind(), ErrorKind::NoSpace);
            }
        }
        Op::Discard { at, len } | Op::Zero { at, len } => {
            let (offset, length) = (ByteOffset::new(at).unwrap(), ByteLen::new(len).unwrap());
            let done = match op {
                Op::Discard { .. } => rig.disk.discard(offset, length),
                _ => rig.disk.write_zeroes(offset, length),
            };
            if fits(at, len) {
                prop_assert!(done.is_ok());
                model[usize::try_from(at).unwrap()..][..usize::try_from(len).unwrap()].fill(0);
            } else {
                prop_assert_eq!(done.unwrap_err().kind(), ErrorKind::NoSpace);
            }
        }
        Op::Sync => prop_assert!(rig.disk.sync().is_ok()),
        Op::Fence => {
            prop_assert!(rig.disk.fence());
            let refused = rig.disk.read_at(ByteOffset::ZERO, &mut [0; 1]).unwrap_err();
            prop_assert_eq!(refused.kind(), ErrorKind::Revoked);
            prop_assert!(rig.disk.resume(XtsCipher::new(&rig.key, rig.sector, Engine::best()).unwrap()));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_is_what_was_written_to_it(
        ops in proptest::collection::vec(op(), 1..60),
        small_sectors in any::<bool>(),
        zero_holes in any::<bool>(),
        cache in prop_oneof![Just(0u32), Just(65536), Just(1 << 22)],
        cut in prop_oneof![Just(0u64), Just(512), Just(3584)],
    ) {
        let sector = if small_sectors { SectorSize::B512 } else { SectorSize::B4096 };
        let size = SIZE - cut;
        let rig = rig(size, sector, cache, zero_holes);
        let mut model = vec![0u8; usize::try_from(size).unwrap()];
        for op in &ops {
            apply(&rig, &mut model, op)?;
        }
        prop_assert_eq!(read(&rig.disk, 0, model.len() + 10), model);
    }
}

/// Each thread owns every fourth kibibyte, so that sectors and blocks are shared and nobody's bytes may be lost.
#[test]
fn four_threads_that_share_every_sector_lose_nothing() {
    for (sector, cache) in [(SectorSize::B4096, 65536), (SectorSize::B512, 65536), (SectorSize::B4096, 0)] {
        let rig = rig(SIZE, sector, cache, true);
        let disk = &rig.disk;
        let finals: Vec<Vec<(u64, Vec<u8>)>> = std::thread::scope(|s| {
            let worker = |t: u64| {
                move || {
                    let mut seed = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(t + 1);
                    let mut mine = std::collections::BTreeMap::new();
                    for round in 0..3000u64 {
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        let at = (seed % (SIZE / 4096)) * 4096 + t * 1024 + (seed >> 40) % 3 * 256;
                        let data = vec![u8::try_from((round + t) % 256).unwrap(); 256];
                        if seed >> 60 < 3 {
                            if let Some(expect) = mine.get(&at) {
                                assert_eq!(&read(disk, at, 256), expect, "thread {t} at {at}");
                            }
                        } else if seed >> 60 == 3 {
                            disk.discard(ByteOffset::new(at).unwrap(), ByteLen::from(256)).unwrap();
                            mine.insert(at, vec![0; 256]);
                        } else {
                            disk.write_at(ByteOffset::new(at).unwrap(), &data).unwrap();
                            mine.insert(at, data);
                        }
                    }
                    mine.into_iter().collect()
                }
            };
            let threads: Vec<_> = (0..4).map(|t| s.spawn(worker(t))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
        for (at, data) in finals.into_iter().flatten() {
            model[usize::try_from(at).unwrap()..][..data.len()].copy_from_slice(&data);
        }
        assert_eq!(read(disk, 0, model.len()), model, "through the cache");
        rig.disk.fence();
        assert!(rig.disk.resume(XtsCipher::new(&rig.key, sector, Engine::best()).unwrap()));
        assert_eq!(read(disk, 0, model.len()), model, "from the store");
    }
}

#[test]
fn nothing_in_the_store_is_plaintext_and_holes_stay_holes() {
    let rig = rig(SIZE, SectorSize::B4096, 1 << 20, true);
    rig.disk.write_at(ByteOffset::from(8192), &[b'P'; 4096]).unwrap();
    let image = rig.store.snapshot();
    assert!(!image.windows(16).any(|w| w == [b'P'; 16]));
    let segment = &image[usize::try_from(OFFSET).unwrap()..];
    assert!(segment[..8192].iter().all(|b| *b == 0) && segment[12288..].iter().all(|b| *b == 0));
    assert!(segment[8192..12288].iter().any(|b| *b != 0));
}

#[test]
fn a_range_that_would_wrap_is_refused_not_wrapped() {
    let rig = rig(SIZE, SectorSize::B4096, 0, true);
    let far = ByteOffset::new(i64::MAX as u64).unwrap();
    assert_eq!(rig.disk.read_at(far, &mut [0; 16]).unwrap(), 0);
    assert_eq!(rig.disk.write_at(far, &[1; 16]).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(
        rig.disk.discard(far, ByteLen::new(i64::MAX as u64).unwrap()).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    assert_eq!(rig.store.len().unwrap().get(), u64::from(OFFSET) + SIZE);
}
