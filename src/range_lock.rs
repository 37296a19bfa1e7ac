//! Locks on byte ranges of a disk: many readers or one writer per range, first come first served.
//!
//! Must never see: stores, keys, caches. The holder of a [`RangeGuard`] may block in I/O for as long as it likes.
//!
//! Invariants:
//! 1. Two overlapping ranges are held at once only when both are shared.
//! 2. A request waits only for requests that came before it, so there is no cycle and no starvation.

use crate::sync::{Condvar, Mutex, lock, wait};
use crate::units::Extent;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

#[derive(Debug)]
struct Request {
    id: u64,
    extent: Extent,
    mode: Mode,
}

impl Request {
    fn conflicts(&self, extent: Extent, mode: Mode) -> bool {
        (self.mode == Mode::Exclusive || mode == Mode::Exclusive) && self.extent.overlaps(extent)
    }
}

#[derive(Debug, Default)]
struct Queue {
    // In order of arrival. As long as the threads that do I/O: a handful, so a scan beats a tree.
    requests: Vec<Request>,
    next_id: u64,
    waiting: usize,
}

/// The ranges of one disk.
#[derive(Debug, Default)]
pub struct RangeLocks {
    queue: Mutex<Queue>,
    freed: Condvar,
}

impl RangeLocks {
    /// Waits until no earlier writer overlaps.
    pub fn shared(&self, extent: Extent) -> RangeGuard<'_> {
        self.acquire(extent, Mode::Shared)
    }

    /// Waits until no earlier request overlaps.
    pub fn exclusive(&self, extent: Extent) -> RangeGuard<'_> {
        self.acquire(extent, Mode::Exclusive)
    }

    fn acquire(&self, extent: Extent, mode: Mode) -> RangeGuard<'_> {
        let mut queue = lock(&self.queue);
        let id = queue.next_id;
        queue.next_id += 1;
        queue.requests.push(Request { id, extent, mode });
        while queue.requests.iter().take_while(|r| r.id != id).any(|r| r.conflicts(extent, mode)) {
            queue.waiting += 1;
            queue = wait(&self.freed, queue);
            queue.waiting -= 1;
        }
        RangeGuard { locks: self, id, extent, mode }
    }
}

/// Proof that a range is held; released when dropped.
#[derive(Debug)]
#[must_use]
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    id: u64,
    extent: Extent,
    mode: Mode,
}

impl RangeGuard<'_> {
    /// What is held.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// True when the holder may read `extent`.
    #[must_use]
    pub const fn covers(&self, extent: Extent) -> bool {
        self.extent.contains(extent)
    }

    /// True when the holder may change `extent`.
    #[must_use]
    pub fn owns(&self, extent: Extent) -> bool {
        self.mode == Mode::Exclusive && self.covers(extent)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.locks.queue);
        queue.requests.retain(|r| r.id != self.id);
        let wake = queue.waiting > 0;
        drop(queue);
        if wake {
            self.locks.freed.notify_all();
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
#[allow(clippy::unwrap_used)] // clippy knows cfg(test) only when it stands alone
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::from_raw(start, len).unwrap()
    }

    #[test]
    fn readers_share_and_disjoint_writers_do_not_meet() {
        let locks = RangeLocks::default();
        let _a = locks.shared(extent(0, 8192));
        let _b = locks.shared(extent(4096, 8192));
        let w = locks.exclusive(extent(12288, 4096));
        assert!(w.owns(extent(12288, 4096)) && !w.owns(extent(8192, 4096)));
    }

    #[test]
    fn a_writer_waits_for_the_reader_before_it_and_holds_off_the_reader_after_it() {
        let locks = RangeLocks::default();
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|s| {
            let reader = locks.shared(extent(0, 4096));
            let (locks, tx2) = (&locks, tx.clone());
            s.spawn(move || {
                let _w = locks.exclusive(extent(0, 4096));
                tx2.send("writer").unwrap();
            });
            while lock(&locks.queue).requests.len() < 2 {
                std::thread::yield_now();
            }
            s.spawn(move || {
                let _r = locks.shared(extent(0, 512));
                tx.send("late reader").unwrap();
            });
            while lock(&locks.queue).requests.len() < 3 {
                std::thread::yield_now();
            }
            assert!(rx.recv_timeout(Duration::from_millis(20)).is_err());
            drop(reader);
            assert_eq!(rx.recv().unwrap(), "writer");
            assert_eq!(rx.recv().unwrap(), "late reader");
        });
        assert!(lock(&locks.queue).requests.is_empty());
    }
}
