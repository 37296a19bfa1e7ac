//! The guard's clocks.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::machine::Moment;

/// Goes on while the machine sleeps: graces are of the world's time.
pub(super) fn boot_time() -> Moment {
    read(ClockId::CLOCK_BOOTTIME)
}

/// How long the machine has slept since it started.
pub(super) fn slept() -> Duration {
    boot_time().saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn read(clock: ClockId) -> Duration {
    // It cannot fail on Linux; zero ends no grace early, and the lease has a clock of its own.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// A moment as the world writes it.
pub(super) fn wall(moment: Moment) -> String {
    let now = jiff::Timestamp::now();
    let ago =
        i64::try_from(boot_time().as_millis()).unwrap_or(0) - i64::try_from(moment.as_millis()).unwrap_or(0);
    let then = jiff::Timestamp::from_millisecond(now.as_millisecond() - ago).unwrap_or(now);
    // Whole seconds, as everywhere.
    jiff::Timestamp::from_second(then.as_second()).unwrap_or(then).to_string()
}
