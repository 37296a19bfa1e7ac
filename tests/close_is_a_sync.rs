//! Is what was written before a close(2) durable when the close returns, whatever else is written or synced meanwhile? A
//! file nobody wrote to closes without a sync, so the disk has to know what a sync covers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wrapdisk::disk::PlainDisk;
use wrapdisk::error::Result;
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset, Extent, SectorSize};
use wrapdisk::volume::{EncryptedVolume, Gate, Layout};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};

const SIZE: u32 = 1 << 20;

/// Calls of one kind: how many have begun, and how many may end.
#[derive(Debug, Default)]
struct Turnstile {
    begun: AtomicU64,
    open: AtomicU64,
}

impl Turnstile {
    fn pass(&self) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        wait_for("its turn", || self.open.load(Ordering::SeqCst) > number);
    }

    fn let_pass(&self, calls: u64) {
        self.open.fetch_add(calls, Ordering::SeqCst);
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} never comes");
        std::thread::yield_now();
    }
}

/// Memory whose writes and syncs end when the test says so.
#[derive(Debug)]
struct Slow {
    inner: MemoryStore,
    writes: Turnstile,
    syncs: Turnstile,
}

impl BackingStore for Slow {
    fn len(&self) -> Result<ByteLen> {
        self.inner.len()
    }
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.writes.pass();
        self.inner.write_at(offset, data)
    }
    fn sync(&self) -> Result<()> {
        self.syncs.pass();
        self.inner.sync()
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.inner.set_len(len)
    }
    fn punch(&self, extent: Extent) -> Result<()> {
        self.inner.punch(extent)
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.inner.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.inner.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.inner.allocated()
    }
}

fn disk() -> (PlainDisk, Arc<Slow>) {
    let inner = MemoryStore::new(usize::try_from(SIZE).unwrap());
    let store = Arc::new(Slow { inner, writes: Turnstile::default(), syncs: Turnstile::default() });
    let cipher = XtsCipher::new(&VolumeKey::generate().unwrap(), SectorSize::B4096, Engine::best()).unwrap();
    let layout = Layout {
        offset: ByteOffset::ZERO,
        sector_size: SectorSize::B4096,
        size: ByteLen::from(SIZE),
        zero_holes: true,
        discards: true,
    };
    let volume = EncryptedVolume::new(Arc::clone(&store) as _, layout, Gate::open(cipher)).unwrap();
    (PlainDisk::new(volume, None, false), store)
}

fn write(disk: &PlainDisk) {
    disk.write_at(ByteOffset::ZERO, &[7; 4096]).unwrap();
}

#[test]
fn a_close_is_a_sync_when_something_was_written_and_nothing_else() {
    let (disk, store) = disk();
    store.writes.let_pass(2);
    store.syncs.let_pass(9);
    disk.flush().unwrap();
    assert_eq!(store.syncs.begun(), 0, "nobody wrote");
    write(&disk);
    disk.flush().unwrap();
    assert_eq!(store.syncs.begun(), 1);
    disk.flush().unwrap();
    assert_eq!(store.syncs.begun(), 1, "nobody wrote since");
    disk.discard(ByteOffset::ZERO, ByteLen::from(4096)).unwrap();
    disk.flush().unwrap();
    assert_eq!(store.syncs.begun(), 2, "a discard is a change");
}

#[test]
fn a_close_while_somebody_else_syncs_does_not_return_before_its_data_is_durable() {
    let (disk, store) = disk();
    store.writes.let_pass(1);
    write(&disk);
    std::thread::scope(|s| {
        let sync = s.spawn(|| disk.sync().unwrap());
        wait_for("the first sync", || store.syncs.begun() == 1);
        let close = s.spawn(|| disk.flush().unwrap());
        wait_for("a sync of the close", || {
            assert!(!close.is_finished(), "closed although no sync has ended");
            store.syncs.begun() == 2
        });
        store.syncs.let_pass(2);
        sync.join().unwrap();
        close.join().unwrap();
    });
}

#[test]
fn a_write_that_ends_after_a_sync_began_is_synced_by_its_close() {
    let (disk, store) = disk();
    store.syncs.let_pass(9);
    std::thread::scope(|s| {
        let writer = s.spawn(|| write(&disk));
        wait_for("the write", || store.writes.begun() == 1);
        disk.sync().unwrap();
        store.writes.let_pass(1);
        writer.join().unwrap();
    });
    disk.flush().unwrap();
    assert_eq!(store.syncs.begun(), 2, "the first one came too early for the write");
}
