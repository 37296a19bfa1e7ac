//! `wrapdisk set wait`.

use std::time::{Duration, Instant};

use super::super::context::Context;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  wrapdisk set wait prod
  wrapdisk set wait prod --timeout 600 && wrapdisk key disable disk-kek/OLD-VERSION")]
pub(in super::super) struct Wait {
    /// The set
    name: String,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,

    /// Look again after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, hide_short_help = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

pub(super) fn run(context: &Context, args: &Wait) -> Result<()> {
    let sets = context.existing()?.sets;
    let start = Instant::now();
    loop {
        let set = sets.by_name(&args.name)?;
        let containers = sets.containers(Some(set.id))?;
        let left = containers.iter().filter(|c| !set.is_done(&c.kids)).count();
        if !set.is_rotating() && left == 0 {
            return Ok(());
        }
        if start.elapsed() >= Duration::from_secs(args.timeout) {
            let message =
                format!("after {} s, {left} container(s) are not under the active version", args.timeout);
            return Err(Error::new(ErrorKind::Busy, message)
                .on(&args.name)
                .hint(format!("see why with: wrapdisk set list-associated-resources {}", args.name)));
        }
        std::thread::sleep(Duration::from_secs(args.interval));
    }
}
