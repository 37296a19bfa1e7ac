//! A machine that loses its power at every moment of a change.

use std::sync::Arc;

use serde_json::Value;
use wrapdisk::error::{ErrorKind, Result};
use wrapdisk::luks2::Header;
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, MemoryStore, Stop};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

use crate::luks2_support::{Copy, HDR, SMALL_FILE, image, vector_key};

/// Where a header begins to differ, ends, or is about to: a tear is tried before and behind each.
const TEARS: [usize; 17] = [0, 1, 6, 8, 16, 24, 104, 168, 256, 448, 480, 512, 4096, 4097, 6000, HDR - 1, HDR];

/// A medium that writes in pieces, in any order: each may survive alone.
#[derive(Debug)]
struct Pieces(Arc<FaultyStore<MemoryStore>>);

impl BackingStore for Pieces {
    fn len(&self) -> Result<ByteLen> {
        self.0.len()
    }
    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let piece = if data.len() <= HDR { 4096 } else { 64 << 10 };
        for (n, piece_of_data) in data.chunks(piece).enumerate() {
            let at = offset.checked_add(ByteLen::new((n * piece) as u64).unwrap()).unwrap();
            self.0.write_at(at, piece_of_data)?;
        }
        Ok(())
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        self.0.set_len(len)
    }
    fn punch(&self, extent: Extent) -> Result<()> {
        self.0.punch(extent)
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.0.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.0.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.0.allocated()
    }
}

/// What a crash may leave of what was not synced: every subset, or many where there are too many.
fn subsets(count: usize) -> Vec<u64> {
    if count <= 6 {
        return (0..1 << count).collect();
    }
    assert!(count < 64, "{count} changes without a sync");
    let all = (1 << count) - 1;
    let singles = (0..count).flat_map(|i| [1 << i, all ^ (1 << i)]);
    // Any fixed mixture will do, as long as it has no pattern of its own.
    let mixed = (1..=24u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7 & all);
    [0, all].into_iter().chain(singles).chain(mixed).collect()
}

fn images(store: &FaultyStore<MemoryStore>) -> impl Iterator<Item = (u64, Vec<u8>)> {
    subsets(store.unsynced()).into_iter().map(|mask| (mask, store.crash_image(|i| mask >> i & 1 == 1)))
}

/// Runs `change` on `start` once for each crash point and shows `judge` what is left. Returns what is left without a crash.
pub(crate) fn every_crash(
    start: &[u8],
    change: impl Fn(&dyn BackingStore),
    mut judge: impl FnMut(&str, Vec<u8>),
) -> Vec<u8> {
    let mut n = 0;
    let whole = loop {
        let (store, plan) = machine(start);
        plan.stop_after(n, Stop::Silent);
        change(&Pieces(Arc::clone(&store)));
        for (mask, image) in images(&store) {
            judge(&format!("after {n} pieces, kept {mask:b}"), image);
        }
        if !plan.stopped() {
            assert_eq!(store.unsynced(), 0, "all is durable when a change returns");
            break store.inner().snapshot();
        }
        n += 1;
    };
    assert!(n > 0, "the change wrote something");
    tears(start, &change, &mut judge);
    whole
}

fn tears(start: &[u8], change: &impl Fn(&dyn BackingStore), judge: &mut impl FnMut(&str, Vec<u8>)) {
    for nth in 1.. {
        for keep in TEARS {
            let (store, plan) = machine(start);
            plan.tear_write(nth, keep, Stop::Silent);
            change(&store);
            if !plan.stopped() {
                return;
            }
            // The torn write is the last one: all, it alone, all but it, nothing.
            let last = 1 << (store.unsynced() - 1);
            let mut masks = vec![2 * last - 1, last, last - 1, 0];
            masks.dedup();
            for mask in masks {
                let image = store.crash_image(|i| mask >> i & 1 == 1);
                judge(&format!("write {nth} torn at byte {keep}, kept {mask:b}"), image);
            }
        }
    }
}

/// Two programs one after the other on one machine: the first is killed after any number of pieces, what it did not sync
/// stays in the page cache; then the power fails at any moment of the second.
pub(crate) fn every_crash_after_a_kill(
    start: &[u8],
    first: impl Fn(&dyn BackingStore),
    second: impl Fn(&dyn BackingStore),
    mut judge: impl FnMut(&str, Vec<u8>),
) {
    for killed in 1.. {
        let mut first_was_killed = true;
        for n in 0.. {
            let (store, plan) = machine(start);
            plan.stop_after(killed, Stop::Silent);
            first(&Pieces(Arc::clone(&store)));
            first_was_killed = plan.stopped();
            plan.clear();
            plan.stop_after(n, Stop::Silent);
            second(&Pieces(Arc::clone(&store)));
            for (mask, image) in images(&store) {
                judge(&format!("killed after {killed} pieces, crashed after {n}, kept {mask:b}"), image);
            }
            if !plan.stopped() {
                break;
            }
        }
        if !first_was_killed {
            return;
        }
    }
}

fn machine(start: &[u8]) -> (Arc<FaultyStore<MemoryStore>>, FaultPlan) {
    let plan = FaultPlan::default();
    let store = FaultyStore::recording(MemoryStore::from(start.to_vec()), plan.clone()).unwrap();
    (Arc::new(store), plan)
}

/// What a reader opens: which commit, and what it says. `None`: nobody opens it.
#[track_caller]
pub(crate) fn opened(at: &str, image: &[u8]) -> Option<(u64, Value)> {
    match Header::load(&MemoryStore::from(image.to_vec())) {
        Ok(header) => {
            if !header.is_plain() {
                let token = header.tokens().next().unwrap().0;
                let warnings =
                    header.verify(Some(token), &vector_key()).unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(warnings, [""; 0], "{at}: every token of a header is good");
            }
            assert!(header.check_key(&vector_key()), "{at}");
            Some((header.seqid(), serde_json::from_str(&header.dump_json()).unwrap()))
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::Damaged, "{at}: {e}");
            None
        }
    }
}

/// The bytes of a container with these two copies (`None`: zeros in its place).
pub(crate) fn container(primary: Option<(u64, &Value)>, secondary: Option<(u64, &Value)>) -> Vec<u8> {
    let copy = |copy: Option<(u64, &Value)>, second: bool| {
        let Some((seqid, json)) = copy else { return vec![0; HDR] };
        let primary = Copy { seqid, ..Copy::primary(&json.to_string()) };
        if second { primary.secondary().bytes(HDR) } else { primary.bytes(HDR) }
    };
    image(&copy(primary, false), &copy(secondary, true), SMALL_FILE).snapshot()
}
