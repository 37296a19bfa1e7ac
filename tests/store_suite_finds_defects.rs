//! Can the suite of tests/store_contract.rs fail? Stores that are broken on purpose, and the claim each one breaks.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod store_support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use store_support::suite::{CLAIMS, LEN, Punch, Subject, extent, get, index, length, offset, put};
use wrapdisk::error::Result;
use wrapdisk::store::{BackingStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

/// What a store can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    LosesTheLastByte,
    GrowsWithGarbage,
    GrowsOnEmptyWrites,
    ReadsZerosPastTheEnd,
    PunchesNothing,
    PunchesTooMuch,
    PunchTruncates,
    KeepsTheSpace,
    SkipsData,
    SeesNoHoles,
    FindsDataPastTheEnd,
    WritesWholeBlocks,
}

#[derive(Debug)]
struct Broken(MemoryStore, Defect);

impl BackingStore for Broken {
    fn len(&self) -> Result<ByteLen> {
        self.0.len()
    }
    fn read_at(&self, at: ByteOffset, buf: &mut [u8]) -> Result<()> {
        match self.0.read_at(at, buf) {
            Err(_) if self.1 == Defect::ReadsZerosPastTheEnd => Ok(()),
            other => other,
        }
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        match self.1 {
            Defect::LosesTheLastByte if data.len() > 1 => self.0.write_at(at, &data[..data.len() - 1]),
            Defect::GrowsOnEmptyWrites if at.get() > self.len()?.get() => self.0.set_len(length(at.get())),
            Defect::WritesWholeBlocks => {
                let whole = extent(at.get(), data.len() as u64).outer(4096).unwrap().clamp_to(self.len()?);
                let mut block = get(&self.0, whole.start().get(), whole.len().get());
                std::thread::sleep(std::time::Duration::from_micros(50));
                let skip = index(at.get() - whole.start().get());
                block[skip..skip + data.len()].copy_from_slice(data);
                self.0.write_at(whole.start(), &block)
            }
            _ => self.0.write_at(at, data),
        }
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn set_len(&self, len: ByteLen) -> Result<()> {
        let old = self.len()?.get();
        self.0.set_len(len)?;
        if self.1 == Defect::GrowsWithGarbage && len.get() > old {
            put(&self.0, old, &[1]);
        }
        Ok(())
    }
    fn punch(&self, e: Extent) -> Result<()> {
        match self.1 {
            Defect::PunchesNothing => Ok(()),
            Defect::PunchesTooMuch => self.0.punch(e.outer(512).unwrap()),
            Defect::PunchTruncates if e.end().get() >= self.len()?.get() && !e.is_empty() => {
                self.0.set_len(length(e.start().get().min(LEN)))
            }
            _ => self.0.punch(e),
        }
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        let end = self.len()?.get();
        Ok(match self.1 {
            Defect::SkipsData if from.get() < 3 << 20 => Some(offset(3 << 20)),
            Defect::FindsDataPastTheEnd => Some(from),
            // A memory store sees no holes; these two need to tell them.
            Defect::None | Defect::KeepsTheSpace => self.first(from, |b| b != 0),
            _ => (from.get() < end).then_some(from),
        })
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        let end = offset(self.len()?.get().max(from.get()));
        Ok(match self.1 {
            Defect::None | Defect::KeepsTheSpace => self.first(from, |b| b == 0).unwrap_or(end),
            _ => end,
        })
    }
    fn allocated(&self) -> Result<ByteLen> {
        match self.1 {
            Defect::KeepsTheSpace => self.0.allocated(),
            // Memory, but as if every zero were a hole; noise has some zeros of its own.
            _ => {
                let zeros =
                    self.0.snapshot().chunks(512).filter(|c| c.iter().all(|&b| b == 0)).count() as u64;
                Ok(length(self.len()?.get() - zeros * 512))
            }
        }
    }
}

impl Broken {
    fn first(&self, from: ByteOffset, is_it: impl Fn(u8) -> bool) -> Option<ByteOffset> {
        let bytes = self.0.snapshot();
        let found = bytes.iter().skip(index(from.get())).position(|&b| is_it(b))?;
        Some(offset(from.get() + found as u64))
    }
}

/// The claims that `defect` breaks.
fn broken_claims(defect: Defect) -> Vec<&'static str> {
    let fresh = || -> Box<dyn BackingStore> { Box::new(Broken(MemoryStore::new(index(LEN)), defect)) };
    let subject = Subject { fresh: &fresh, punch: Punch::Frees, sees_holes: true, grows: true };
    let fails = |claim: fn(&dyn BackingStore, &Subject<'_>)| {
        catch_unwind(AssertUnwindSafe(|| claim(&*fresh(), &subject))).is_err()
    };
    CLAIMS.iter().filter(|(_, claim)| fails(*claim)).map(|(name, _)| *name).collect()
}

#[test]
fn the_suite_finds_every_defect() {
    assert_eq!(broken_claims(Defect::None), [""; 0], "the control: a sound store passes");
    for (defect, claim) in [
        (Defect::LosesTheLastByte, "what was written is read back"),
        (Defect::GrowsOnEmptyWrites, "nothing asked is nothing done"),
        (Defect::GrowsWithGarbage, "new bytes are zeros"),
        (Defect::ReadsZerosPastTheEnd, "a read past the end fails"),
        (Defect::PunchesNothing, "a punch zeroes its extent and nothing else"),
        (Defect::PunchesTooMuch, "a punch zeroes its extent and nothing else"),
        (Defect::PunchTruncates, "a punch zeroes its extent and nothing else"),
        (Defect::PunchesTooMuch, "random operations equal the model"),
        (Defect::KeepsTheSpace, "a punch frees space"),
        (Defect::SkipsData, "seeking never skips data"),
        (Defect::SeesNoHoles, "seeking never skips data"),
        (Defect::FindsDataPastTheEnd, "seeking at the end finds nothing"),
        (Defect::WritesWholeBlocks, "threads on disjoint ranges do not meet"),
    ] {
        let found = broken_claims(defect);
        assert!(found.contains(&claim), "{defect:?} must break \"{claim}\", broke {found:?}");
    }
}
