//! A reader of the presented file: when it was served last, and when again.
//!
//! It reads past the kernel's pages (O_DIRECT), so that what it gets was decrypted just now.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{IoContext, Result};
use crate::sync::{Mutex, lock};

/// Between two reads: what a drill can tell apart.
const PACE: Duration = Duration::from_millis(2);

const LEN: usize = 4096;

/// What a reader saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When the last read that succeeded was done; before the first: when the reader began.
    pub(super) last: Instant,
    /// Reads that succeeded.
    pub(super) served: u64,
    /// Reads that did not.
    pub(super) failed: u64,
    /// The longest time without one that did: from the last before it to the end of the first after it.
    pub(super) gap: Option<(Instant, Instant)>,
}

/// Reads until it is dropped. A read that is parked (`--on-revoke freeze`) is not waited for.
#[derive(Debug)]
pub(super) struct Reader {
    seen: Arc<Mutex<Seen>>,
    end: Arc<AtomicBool>,
}

impl Reader {
    pub(super) fn start(path: &Path) -> Result<Self> {
        let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).io_at("read", path)?;
        let first = Seen { last: Instant::now(), served: 0, failed: 0, gap: None };
        let (seen, end) = (Arc::new(Mutex::new(first)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::Builder::new().name("reader".to_owned());
        let (ours, stop) = (Arc::clone(&seen), Arc::clone(&end));
        thread.spawn(move || read_on(&file, &ours, &stop)).io_at("start a thread", "")?;
        Ok(Self { seen, end })
    }

    pub(super) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// Forgets the longest gap: what was before does not count.
    pub(super) fn begin(&self) {
        lock(&self.seen).gap = None;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn read_on(file: &File, seen: &Mutex<Seen>, end: &AtomicBool) {
    let mut memory = vec![0; 2 * LEN];
    let start = memory.as_ptr().align_offset(LEN).min(LEN);
    let buffer = &mut memory[start..start + LEN];
    while !end.load(Ordering::Relaxed) {
        let done = file.read_at(buffer, 0);
        let now = Instant::now();
        {
            let mut seen = lock(seen);
            if done.is_ok() {
                let longest = seen.gap.map_or(Duration::ZERO, |(from, to)| to - from);
                if now - seen.last > longest {
                    seen.gap = Some((seen.last, now));
                }
                seen.last = now;
                seen.served += 1;
            } else {
                seen.failed += 1;
            }
        }
        std::thread::sleep(PACE);
    }
    zeroize::Zeroize::zeroize(&mut memory);
}
