//! What the layers above the store cost, without FUSE and without a file: the block cache alone, and `PlainDisk` reads and
//! writes over a store in memory. `cargo bench --bench disk`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wrapdisk::cache::{BLOCK, BlockCache, BlockIndex};
use wrapdisk::disk::PlainDisk;
use wrapdisk::range_lock::RangeLocks;
use wrapdisk::store::MemoryStore;
use wrapdisk::units::{ByteLen, ByteOffset, Extent, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const SIZE: u32 = 64 << 20;

fn disk(cache: u32) -> PlainDisk {
    let cipher = XtsCipher::new(&VolumeKey::generate().unwrap(), SectorSize::B4096, Engine::best()).unwrap();
    let layout = Layout {
        offset: ByteOffset::ZERO,
        sector_size: SectorSize::B4096,
        size: ByteLen::from(SIZE),
        zero_holes: true,
        discards: true,
    };
    let store = Arc::new(MemoryStore::new(usize::try_from(SIZE).unwrap()));
    let volume = EncryptedVolume::new(store, layout, Gate::open(cipher)).unwrap();
    let disk = PlainDisk::new(volume, BlockCache::new(ByteLen::from(cache)).unwrap(), false);
    disk.overwrite(|_| ()).unwrap();
    disk
}

/// Offsets that visit a range in an order no prefetcher likes, the same in every run.
fn offsets(len: u32, range: u32) -> impl Iterator<Item = ByteOffset> {
    let slots = range / len;
    (0u32..).map(move |i| ByteOffset::from(i.wrapping_mul(2_654_435_761) % slots * len))
}

fn cache(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache");
    group.throughput(Throughput::Bytes(BLOCK as u64)).measurement_time(Duration::from_secs(1));
    let cache = BlockCache::new(ByteLen::from(SIZE)).unwrap().unwrap();
    let locks = RangeLocks::default();
    let whole = Extent::from_raw(0, 1 << 40).unwrap();
    let guard = locks.shared(whole);
    let mut block = vec![7; BLOCK];
    for at in (0..SIZE).step_by(BLOCK) {
        cache.insert(&guard, BlockIndex::of(ByteOffset::from(at)), &block);
    }
    let mut hot = offsets(4096, SIZE);
    group.bench_function("hit", |b| {
        b.iter(|| black_box(cache.read(BlockIndex::of(hot.next().unwrap()), 0, &mut block)));
    });
    let mut cold = (0u64..).map(|n| ByteOffset::new((1 << 30) + n * 4096 % (1 << 38)).unwrap());
    group.bench_function("insert and evict", |b| {
        b.iter(|| cache.insert(&guard, BlockIndex::of(cold.next().unwrap()), &block));
    });
    group.bench_function("range lock", |b| {
        b.iter(|| {
            black_box(RangeLocks::default().shared(Extent::from_raw(4096, 4096).unwrap())).covers(whole)
        });
    });
    group.finish();
}

fn plain_disk(c: &mut Criterion) {
    for (name, budget) in [("no cache", 0), ("cached, hot", SIZE * 2)] {
        let disk = disk(budget);
        let mut group = c.benchmark_group(format!("disk, {name}"));
        group.measurement_time(Duration::from_secs(1));
        for len in [4096u32, 128 << 10, 1 << 20] {
            let mut buf = vec![1; usize::try_from(len).unwrap()];
            group.throughput(Throughput::Bytes(u64::from(len)));
            let mut at = offsets(len, SIZE);
            group.bench_function(BenchmarkId::new("read", len), |b| {
                b.iter(|| disk.read_at(at.next().unwrap(), &mut buf).unwrap());
            });
            group.bench_function(BenchmarkId::new("write", len), |b| {
                b.iter(|| disk.write_at(at.next().unwrap(), &buf).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, cache, plain_disk);
criterion_main!(benches);
