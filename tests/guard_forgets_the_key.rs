//! Once the guard has taken a key away, is it gone from the memory of the mount's process, with its schedules and the plaintext
//! of the cache: in /proc/PID/mem, and in a core file? And is it nowhere else than behind the gate while the guard probes?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod memory_support;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use memory_support::{list, needles, of_key, search, search_core};
use support::{Home, eventually, noise};

const LEN: usize = 400_000;

#[test]
fn after_the_fence_memory_holds_neither_key_nor_plaintext() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    let content = noise(91, LEN);
    // By another process: what a process receives to write is another matter (tests/secrets_end_at_the_fence.rs).
    let first = home.mount("vm.wd", &[]);
    let file = File::options().write(true).open(&first.file).unwrap();
    file.write_all_at(&content, 0).unwrap();
    drop(file);
    first.unmount();
    home.wrapdisk(["volume-key", "vm.wd", "--yes", "--output", home.text("vm.key")]).ok();
    let key = of_key(&std::fs::read(home.path("vm.key")).unwrap());
    let pieces = content.chunks(4096).filter_map(|block| block.last_chunk::<16>());
    let plaintext: Vec<_> = pieces.flat_map(|piece| needles("what was read", piece)).collect();

    let mount = home.mount("vm.wd", &["--probe-interval", "5s"]);
    let pid = mount.pid.to_string();
    let file = File::open(&mount.file).unwrap();
    let mut found = vec![0; 4096];
    for at in (0..LEN - 4096).step_by(4096) {
        file.read_exact_at(&mut found, at as u64).unwrap();
    }
    let probes = || mount.status()["guard"]["probes"].as_u64().unwrap();
    eventually("two probes", || (probes() >= 2).then_some(()));
    for needles in [&key, &plaintext] {
        let hits = search(&pid, needles);
        assert!(hits.len() > 20, "the search finds {} of {}", hits.len(), needles[0].what);
        let stray = list(hits.iter().filter(|hit| !(hit.mapping.is_undumped() && hit.mapping.is_locked())));
        assert!(stray.is_empty(), "while it serves and is probed, in memory that may be dumped:\n{stray}");
        assert!(search_core(&pid, true, needles).len() > 20, "gdb sees all that there is");
        assert_eq!(search_core(&pid, false, needles), [""; 0], "in what the kernel may dump");
    }

    home.wrapdisk(["key", "disable", "disk-kek", "--yes"]).ok();
    eventually("the fence", || (mount.status()["state"] == "revoked").then_some(()));
    let secrets = [key.clone(), plaintext].concat();
    let left = list(&search(&pid, &secrets));
    assert!(left.is_empty(), "after the fence:\n{left}");
    assert_eq!(search_core(&pid, true, &secrets), [""; 0], "in a core file made after the fence");

    home.wrapdisk(["key", "enable", "disk-kek"]).ok();
    eventually("I/O goes on", || file.read_exact_at(&mut found, 0).ok());
    assert!(found == content[..4096]);
    assert!(search(&pid, &key).len() > 20, "the key is back");
    drop(file);
    mount.unmount();
}
