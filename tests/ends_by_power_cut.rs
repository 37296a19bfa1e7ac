//! Question: when the power goes, is everything there that an fsync through the mount had promised, whatever else of the
//! writes under way did or did not reach the medium?
//!
//! The medium below the real program remembers what was synced and what came after; any part of the latter may be lost.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod faulty_support;
mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use faulty_support::Medium;
use support::{Home, noise};

/// Bytes of a slot, with a partial sector at both ends. No two share a sector, and each is written in one piece (a larger
/// write may be cut at multiples of 128 KiB).
const SLOT: usize = 7000;
const STRIDE: u64 = 4 * 4096;
const SLOTS: u64 = 100;

/// What a slot may hold, by seed; 0 is zeros.
struct Slot {
    promised: u64,
    written: Option<u64>,
}

fn content(seed: u64) -> Vec<u8> {
    if seed == 0 { vec![0; SLOT] } else { noise(seed, SLOT) }
}

fn write(file: &File, slots: &mut [Slot], n: u64, seed: u64) {
    file.write_all_at(&content(seed), n * STRIDE + 100).unwrap();
    slots[usize::try_from(n).unwrap()].written = Some(seed);
}

fn sync(file: &File, slots: &mut [Slot]) {
    file.sync_all().unwrap();
    for slot in slots {
        slot.promised = slot.written.take().unwrap_or(slot.promised);
    }
}

/// What is wrong with this disk after a cut.
fn broken_promises(file: &Path, slots: &[Slot]) -> Vec<u64> {
    let file = File::open(file).unwrap();
    let kept = |(n, slot): (u64, &Slot)| {
        let mut found = vec![0; SLOT];
        file.read_exact_at(&mut found, n * STRIDE + 100).unwrap();
        let good = found == content(slot.promised) || slot.written.is_some_and(|seed| found == content(seed));
        (!good).then_some(n)
    };
    (0..).zip(slots).filter_map(kept).collect()
}

#[test]
fn what_an_fsync_promised_survives_a_power_cut() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let medium = Medium::new(std::fs::read(disk).unwrap(), &home.path("medium"));
    std::fs::create_dir(home.path("place")).unwrap();
    let mount = home.mount_at(medium.text(), &home.path("place"), &[]);
    let file = OpenOptions::new().read(true).write(true).open(&mount.file).unwrap();
    let mut slots: Vec<Slot> = (0..SLOTS).map(|_| Slot { promised: 0, written: None }).collect();
    let mut lost = 0;
    for cut in 0..6_u64 {
        for n in 0..SLOTS / 2 {
            write(&file, &mut slots, (n * 7 + cut) % SLOTS, 1 + cut * 1000 + n);
            if n % 10 == 9 {
                sync(&file, &mut slots);
            }
        }
        // On the second cut right after a sync, on the others with writes under way.
        for n in 0..if cut == 1 { 0 } else { 30 } {
            write(&file, &mut slots, (n * 3 + cut) % SLOTS, 501 + cut * 1000 + n);
        }
        lost += medium.store.unsynced();
        let lucky = noise(cut + 1, 4096);
        let image = medium.store.crash_image(|n| match cut {
            0 | 1 => false,
            2 => true,
            _ => lucky[n % 4096] & 1 == 1,
        });
        let name = format!("cut{cut}.wd");
        std::fs::write(home.path(&name), &image).unwrap();
        home.wrapdisk(["check", &name]).ok();
        let after = home.mount(&name, &[]);
        assert_eq!(broken_promises(&after.file, &slots), Vec::<u64>::new(), "cut {cut}");
        after.unmount();
        sync(&file, &mut slots);
    }
    assert!(lost > 100, "only {lost} changes were under way");

    // The judge: a medium that says yes to a sync and keeps nothing is found.
    medium.plan().stop_after(0, wrapdisk::store::Stop::Silent);
    write(&file, &mut slots, 5, 77_777);
    sync(&file, &mut slots);
    std::fs::write(home.path("liar.wd"), medium.store.crash_image(|_| true)).unwrap();
    let after = home.mount("liar.wd", &[]);
    assert_eq!(broken_promises(&after.file, &slots), [5]);
    after.unmount();
    drop(file);
    mount.unmount();
}
