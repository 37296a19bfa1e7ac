//! Is a mount usable where little memory may be locked (RLIMIT_MEMLOCK), does it lock the key before anything else, and does
//! it say that the rest can reach swap?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod memory_support;
mod support;

use std::os::unix::fs::FileExt;

use memory_support::{list, needles, search};
use support::{Done, Home, WRAPDISK, finish, noise};

const WARNING: &str = "key memory may reach swap (raise RLIMIT_MEMLOCK)";

/// Runs the program so that it may lock `kib` KiB. Root may lock everything unless that capability is taken away.
fn limited(home: &Home, kib: Option<u32>, args: &[&str]) -> Done {
    let Some(kib) = kib else { return home.wrapdisk(args) };
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "bash", "-c"]);
    command.arg(format!("ulimit -l {kib}; exec \"$0\" \"$@\"")).arg(WRAPDISK).args(args);
    finish(command.env("WRAPDISK_HOME", home.path("home")).current_dir(home.root()))
}

#[test]
fn where_little_may_be_locked_the_key_is_and_the_rest_is_said_to_reach_swap() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    home.wrapdisk(["volume-key", "vm.wd", "--output", "vm.key", "--yes"]).ok();
    let key = needles("the volume key", &std::fs::read(home.path("vm.key")).unwrap());
    std::fs::create_dir(home.path("place")).unwrap();
    // 2 MiB: the schedules of as many processors as there may be, but not a sixteenth of the cache.
    for (kib, key_locked, says) in [(Some(0), false, true), (Some(2048), true, true), (None, true, false)] {
        limited(&home, kib, &["mount", "vm.wd", "place", "--cache-size", "64M"]).ok();
        let mount = home.adopt(&home.path("place"));
        let file = std::fs::File::options().read(true).write(true).open(&mount.file).unwrap();
        let data = noise(u64::from(kib.unwrap_or(1)), 1 << 20);
        file.write_all_at(&data, 0).unwrap();
        let mut found = vec![0; data.len()];
        for _ in 0..2 {
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == data, "{kib:?} KiB");
        }

        assert_eq!(mount.status()["memoryLocked"], !says, "{kib:?} KiB");
        let told = home.wrapdisk(["status", mount.text()]).ok();
        assert_eq!(told.contains(WARNING), says, "{kib:?} KiB: {told}");
        let hits = search(&mount.pid.to_string(), &key);
        assert!(!hits.is_empty(), "the search finds the key of a live mount");
        let locked = hits.iter().all(|hit| hit.mapping.is_locked());
        assert_eq!(locked, key_locked, "{kib:?} KiB:\n{}", list(&hits));
        drop(file);
        mount.unmount();
    }
}
