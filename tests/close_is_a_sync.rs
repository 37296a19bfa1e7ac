//! Is what was written before a close(2) durable when the close returns, whatever else is written or synced meanwhile? A
//! file nobody wrote to closes without a sync, so the disk has to know what a sync covers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod disk_support;

use disk_support::{Rig, Shape, length, offset};
use wrapdisk::store::Op;
use wrapdisk::units::SectorSize;

fn rig() -> Rig {
    Rig::new(Shape { size: 1 << 20, sector: SectorSize::B4096, cache: 0 })
}

/// Those that got through to the medium.
fn syncs(rig: &Rig) -> u64 {
    rig.plan.count(Op::Sync)
}

#[test]
fn a_close_is_a_sync_when_something_was_written_and_nothing_else() {
    let rig = rig();
    rig.disk.flush().unwrap();
    assert_eq!(syncs(&rig), 0, "nobody wrote");
    rig.write(0, &[7; 4096]).unwrap();
    rig.disk.flush().unwrap();
    assert_eq!(syncs(&rig), 1);
    rig.disk.flush().unwrap();
    assert_eq!(syncs(&rig), 1, "nobody wrote since");
    rig.disk.discard(offset(0), length(4096)).unwrap();
    rig.disk.flush().unwrap();
    assert_eq!(syncs(&rig), 2, "a discard is a change");
}

#[test]
fn a_close_while_somebody_else_syncs_does_not_return_before_its_data_is_durable() {
    let rig = rig();
    rig.write(0, &[7; 4096]).unwrap();
    rig.brake.arm(Op::Sync);
    std::thread::scope(|s| {
        let sync = s.spawn(|| rig.disk.sync().unwrap());
        rig.brake.wait_until_stuck();
        rig.disk.flush().unwrap();
        let own = syncs(&rig);
        rig.brake.release();
        sync.join().unwrap();
        assert_eq!(own, 1, "closed although no sync has ended");
    });
}

#[test]
fn a_write_that_ends_after_a_sync_began_is_synced_by_its_close() {
    let rig = rig();
    rig.brake.arm(Op::Write);
    std::thread::scope(|s| {
        let writer = s.spawn(|| rig.write(0, &[7; 4096]).unwrap());
        rig.brake.wait_until_stuck();
        rig.disk.sync().unwrap();
        rig.brake.release();
        writer.join().unwrap();
    });
    rig.disk.flush().unwrap();
    assert_eq!(syncs(&rig), 2, "the first one came too early for the write");
}
