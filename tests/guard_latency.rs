//! How long after a revocation is the last I/O served? With the key in another machine's vault (`vault serve` over TLS) within
//! twice the probe interval, half of the time within one; with the embedded vault in about a second. A reader reads all the time;
//! the figures are printed (`--nocapture`). After the first fence, a core file of the daemon holds neither key nor plaintext.
//!
//! In CI a few drills at the shortest interval; with WRAPDISK_LONG=1 thirty at the default one, which takes most of an hour.
#![cfg(all(feature = "azure", feature = "serve"))]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "figures")]

mod memory_support;
mod serve_support;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memory_support::{Needle, needles, of_key, search_core};
use serde_json::Value;
use serve_support::Served;
use support::{Home, Mount, noise};
use wrapdisk::envelope::KeyRef;
use wrapdisk::vault::local::{CredentialKind, Grant, IdentityKind, LocalVault, NewKey, Permission, RsaBits};

fn is_long() -> bool {
    std::env::var_os("WRAPDISK_LONG").is_some()
}

/// Reads until told to stop; when it was served last, again and again.
struct Reader {
    file: File,
    content: Vec<u8>,
}

impl Reader {
    fn served(&self) -> bool {
        let mut found = vec![0; self.content.len()];
        match self.file.read_exact_at(&mut found, 0) {
            Ok(()) => {
                assert!(found == self.content, "acknowledged and synced data is intact");
                true
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
                false
            }
        }
    }

    /// A thousand times a second: the machine has other things to do for an hour.
    fn pause() {
        std::thread::sleep(Duration::from_millis(1));
    }

    /// From now on to the last read that was served.
    fn until_it_ends(&self, take: impl FnOnce()) -> Duration {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = Instant::now();
                while self.served() {
                    last = Instant::now();
                    Self::pause();
                }
                ended.store(true, Ordering::Relaxed);
                last
            });
            let taken = Instant::now();
            take();
            let last = reader.join().unwrap();
            assert!(ended.load(Ordering::Relaxed));
            last.saturating_duration_since(taken)
        })
    }

    fn until_it_goes_on(&self, give: impl FnOnce()) -> Duration {
        give();
        let given = Instant::now();
        while !self.served() {
            Self::pause();
        }
        given.elapsed()
    }
}

/// A disk with something on it that no process still has in its memory, and what must not be left of it after a fence.
fn disk(home: &Home, options: &[&str]) -> (Vec<u8>, Vec<Needle>) {
    home.create("vm.wd", "1M", options);
    let content = noise(3, 4096);
    let first = home.mount("vm.wd", &[]);
    let file = File::options().write(true).open(&first.file).unwrap();
    file.write_all_at(&content, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    first.unmount();
    home.wrapdisk(["volume-key", "vm.wd", "--yes", "--output", home.text("vm.key")]).ok();
    let mut secrets = of_key(&std::fs::read(home.path("vm.key")).unwrap());
    secrets.extend(needles("plaintext", &content));
    (content, secrets)
}

/// `turns` drills; the time to stop of each, sorted.
fn drills(
    mount: &Mount<'_>,
    (content, secrets): (Vec<u8>, Vec<Needle>),
    turns: usize,
    switch: impl Fn(bool),
) -> Vec<Duration> {
    let pid = mount.pid.to_string();
    let reader = Reader { file: File::open(&mount.file).unwrap(), content };
    assert!(reader.served() && search_core(&pid, true, &secrets).len() > 20, "they can be found");
    let (mut stops, mut starts) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        stops.push(reader.until_it_ends(|| switch(false)));
        if turn == 0 {
            assert_eq!(search_core(&pid, true, &secrets), [""; 0], "in a core file");
        }
        starts.push(reader.until_it_goes_on(|| switch(true)));
    }
    stops.sort();
    starts.sort();
    let show = |times: &[Duration]| {
        format!("median {:.2?}, maximum {:.2?}", times[times.len() / 2], times[times.len() - 1])
    };
    println!("{turns} drills: to stop {}; to resume {}", show(&stops), show(&starts));
    stops
}

#[test]
fn through_vault_serve_io_ends_within_twice_the_probe_interval() {
    let served = Served::new();
    let admin = served.vault.admin("test");
    served.vault.create_key("disk-kek", &NewKey::wrapping(RsaBits::B2048), &admin).unwrap();
    let prod = served.vault.create_identity("prod", IdentityKind::User, &admin).unwrap();
    let may = [Permission::Get, Permission::WrapKey, Permission::UnwrapKey].to_vec();
    served.vault.grant(prod, Grant::Permissions(may), Some("disk-kek"), &admin).unwrap();
    let secret = served.vault.add_credential(prod, CredentialKind::ClientSecret, None, None, &admin).unwrap();
    let user = Home::ready();
    std::fs::write(user.path("secret"), secret.expose()).unwrap();
    std::fs::set_permissions(user.path("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let url = format!("https://127.0.0.1:{}", served.port);
    let ca = served.home.text("ca.pem");
    let who = ["--credential", "client-secret", "--client-id", "prod", "--secret-file", user.text("secret")];
    let alias = ["--alias", &format!("{}.vault.localhost", served.vault.id())];
    let add = ["vault", "add", "office", &url, "--local-server", "--ca-file", ca];
    user.wrapdisk([&add[..], &who[..], &alias[..]].concat()).ok();
    user.wrapdisk(["set", "create", "prod", "--key-url", &format!("{url}/keys/disk-kek")]).ok();
    let disk = disk(&user, &["--set", "prod"]);

    let (interval, turns, options) =
        if is_long() { (60, 30, &[][..]) } else { (5, 5, &["--probe-interval", "5s"][..]) };
    let mount = user.mount("vm.wd", options);
    assert_eq!(mount.status()["guard"]["policy"]["probeInterval"], format!("{interval}s"));
    let key = KeyRef::parse("disk-kek").unwrap();
    print!("vault serve, interval {interval} s, ");
    let stops = drills(&mount, disk, turns, |enabled| {
        served.vault.set_enabled(&key, enabled, &served.vault.admin("drill")).unwrap();
    });
    let interval = Duration::from_secs(interval);
    assert!(stops[stops.len() / 2] <= interval, "the median: {stops:?}");
    assert!(stops[stops.len() - 1] <= interval * 2, "the maximum: {stops:?}");

    // The rehearsal measures the same.
    let report = user.json(["drill", "revoke", "prod", "--yes"]);
    println!("{report:#}");
    assert_eq!((&report["kept"], &report["mounts"][1]), (&true.into(), &Value::Null));
    let stop = report["mounts"][0]["stopSeconds"].as_f64().unwrap();
    assert!(stop <= (interval * 2).as_secs_f64(), "{report}");
    mount.unmount();
}

#[test]
fn with_the_embedded_vault_io_ends_in_about_a_second() {
    let home = Home::ready();
    let disk = disk(&home, &[]);
    let mount = home.mount("vm.wd", &[]);
    let vault = LocalVault::open(&home.path("home/state")).unwrap();
    let key = KeyRef::parse("disk-kek").unwrap();
    print!("embedded vault, nobody pokes, ");
    let turns = if is_long() { 30 } else { 5 };
    let stops = drills(&mount, disk, turns, |enabled| {
        vault.set_enabled(&key, enabled, &vault.admin("drill")).unwrap();
    });
    // A second; the rest is for a machine that is busy.
    assert!(stops[stops.len() - 1] <= Duration::from_secs(10), "{stops:?}");
    mount.unmount();
}
