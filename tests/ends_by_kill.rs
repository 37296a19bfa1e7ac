//! Question: when the process of a mount is killed, do its users get errors, is everything they were told is written there
//! afterwards, and do the next mount, `status` and `umount` cope with what it leaves behind?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli_support;
mod daemon_support;
mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon_support::{errno, is_mounted, send, sockets};
use nix::sys::signal::Signal;
use support::{Home, Mount, eventually, finish, noise, run};

/// Bytes of a slot that one write fills, and the distance of slots: partial sectors at both ends.
const SLOT: usize = 7000;
const STRIDE: u64 = 8192;
const SLOTS: usize = 64;

fn open(file: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(file).unwrap()
}

/// kill -9, until the kernel knows that nobody will answer any more. A request that was on its way is aborted.
#[track_caller]
fn kill(mount: &Mount<'_>) {
    send(mount.pid, Signal::SIGKILL);
    mount.wait_for_end();
    eventually("the end of the connection", || {
        let found = errno(std::fs::metadata(&mount.file).and(File::open(&mount.file)));
        assert!(matches!(found, libc::ECONNABORTED | libc::ENOTCONN), "errno {found}");
        (found == libc::ENOTCONN).then_some(())
    });
}

/// Mounts the disk once more where it died, and says what the program said.
#[track_caller]
fn mount_again(home: &Home, disk: &str, place: &Path) -> String {
    let done = home.wrapdisk(["mount", disk, place.to_str().unwrap()]);
    let warning = done.err.clone();
    done.ok();
    warning
}

#[test]
fn a_dead_mount_is_taken_off_and_mounted_again() {
    for file_mountpoint in [false, true] {
        for still_open in [false, true] {
            let home = Home::ready();
            home.create("vm.wd", "4M", &[]);
            let place = home.path("place");
            if file_mountpoint { File::create(&place).map(drop) } else { std::fs::create_dir(&place) }
                .unwrap();
            let mount = home.mount_at("vm.wd", &place, &[]);
            let user = open(&mount.file);
            user.write_all_at(&noise(1, 100_000), 5000).unwrap();
            kill(&mount);

            assert!(is_mounted(&place), "the kernel keeps it");
            assert_eq!(errno(user.read_at(&mut [0], 0)), libc::ENOTCONN);
            assert_eq!(errno(user.write_at(&[0], 0)), libc::ENOTCONN);
            assert_eq!(errno(File::open(&mount.file)), libc::ENOTCONN);
            assert_eq!(sockets(&home).len(), 1, "left behind");
            let user = still_open.then_some(user);

            let said = mount_again(&home, "vm.wd", &place);
            let expected = format!(
                "wrapdisk: warn: {}: a wrapdisk mount whose daemon is gone; taking it off\n",
                place.display()
            );
            assert_eq!(said, expected);
            let mut found = vec![0; 100_000];
            open(&mount.file).read_exact_at(&mut found, 5000).unwrap();
            assert!(found == noise(1, 100_000));
            assert_eq!(sockets(&home).len(), 1);
            if let Some(user) = user {
                assert_eq!(errno(user.read_at(&mut [0], 0)), libc::ENOTCONN, "still of the dead one");
            }
            eventually("unmount", || home.wrapdisk(["umount", "vm.wd"]).status.success().then_some(()));
            assert!(!is_mounted(&place), "nothing is left below");
        }
    }
}

#[test]
fn a_dead_mount_is_not_listed_and_can_be_unmounted() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    for name in ["place", disk.to_str().unwrap()] {
        let place = home.path("place");
        std::fs::create_dir_all(&place).unwrap();
        let mount = home.mount_at("vm.wd", &place, &[]);
        kill(&mount);
        assert_eq!(home.wrapdisk(["status"]).ok(), "nothing is mounted");
        assert!(sockets(&home).is_empty(), "the dead one's socket is removed");
        let unknown = home.wrapdisk(["status", "vm.wd"]).fails(1);
        assert_eq!(unknown, "wrapdisk: vm.wd: not mounted\n  wrapdisk status lists what is");

        home.wrapdisk(["umount", name]).ok();
        assert!(!is_mounted(&place));
    }
}

#[test]
fn a_dead_mount_in_use_says_how_to_take_it_off() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let user = open(&mount.file);
    kill(&mount);
    let refused = home.wrapdisk(["umount", "vm.wd.mnt"]).fails(1);
    assert!(refused.contains("umount: still in use"), "{refused}");
    assert!(refused.contains("wrapdisk umount --lazy"), "{refused}");
    home.wrapdisk(["umount", "--lazy", "vm.wd.mnt"]).ok();
    assert!(!is_mounted(&mount.place));
    drop(user);
}

#[test]
fn a_killed_disk_can_be_mounted_elsewhere() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mount = home.mount("vm.wd", &[]);
    kill(&mount);
    let other = home.path("other");
    std::fs::create_dir(&other).unwrap();
    home.mount_at("vm.wd", &other, &[]).unmount();
}

#[test]
fn an_ordinary_user_copes_with_a_dead_mount_as_well() {
    let home = Home::ready();
    run("chown", ["-R", "65534:65534", home.root().to_str().unwrap()]);
    let script = format!(
        r#"{}
        cd "$DIR"
        u() {{ setpriv --reuid 65534 --regid 65534 --clear-groups env WRAPDISK_HOME="$DIR/home" "$@"; }}
        die() {{ pkill -9 -x wrapdisk; while pgrep -x wrapdisk > /dev/null; do sleep 0.01; done; }}
        u "$WRAPDISK" create vm.wd --size 4M > /dev/null
        u mkdir folder; u touch file
        for place in folder file; do
            image=$place; [ $place = file ] || image=folder/disk.img
            u "$WRAPDISK" mount vm.wd $place > /dev/null
            echo precious | u dd of=$image conv=notrunc,fsync status=none
            die
            u cat $image 2>&1 | head -1 || true
            u "$WRAPDISK" mount vm.wd $place 2>&1 > /dev/null
            u head -c 9 $image
            # And with somebody who still has the dead file open.
            u bash -c "exec 9< $image; touch opened; exec sleep 1000" &
            while [ ! -e opened ]; do sleep 0.01; done; rm opened
            die
            u "$WRAPDISK" mount vm.wd $place > /dev/null 2>&1
            u head -c 9 $image
            pkill -x sleep
            die
            u "$WRAPDISK" umount $place
            ! mountpoint -q $place
            u "$WRAPDISK" mount vm.wd $place > /dev/null 2>&1
            u head -c 9 $image
            u "$WRAPDISK" umount $place
        done"#,
        cli_support::FUSE_FOR_ALL
    );
    let env = [("DIR", home.root()), ("WRAPDISK", Path::new(support::WRAPDISK))];
    let said = cli_support::on_a_machine_of_its_own(&script, &env).ok();
    let expected = ["folder/disk.img", "file"].map(|image| {
        let place = home.path(image.split('/').next().unwrap());
        format!(
            "cat: {image}: Transport endpoint is not connected\n\
             wrapdisk: warn: {}: a wrapdisk mount whose daemon is gone; taking it off\n\
             precious\nprecious\nprecious",
            place.display()
        )
    });
    assert_eq!(said, expected.join("\n"));
}

// --- nothing that was acknowledged is lost ---

/// One user of the disk, with a part of it to itself.
struct Writer {
    first: usize,
    /// What each slot holds for certain.
    told: Vec<u64>,
    /// The slot whose write was not answered, and what it would hold.
    unsure: Option<(usize, u64)>,
}

impl Writer {
    fn new(first: usize) -> Self {
        Self { first, told: vec![0; SLOTS], unsure: None }
    }

    fn at(&self, slot: usize) -> u64 {
        (self.first + slot) as u64 * STRIDE + 100
    }

    /// Writes and syncs until the mount is gone. Answers how many writes were told to be durable.
    fn write_until_error(&mut self, file: &Path, seed: u64) -> usize {
        let Ok(file) = OpenOptions::new().write(true).open(file) else { return 0 };
        for n in 1.. {
            let stamp = seed << 32 | n;
            let slot = usize::try_from(stamp.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58).unwrap();
            let done = file.write_all_at(&noise(stamp, SLOT), self.at(slot));
            if let Err(e) = done.and_then(|()| file.sync_data()) {
                assert!(
                    matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::ENOTCONN)),
                    "users of a killed mount are told: {e}"
                );
                self.unsure = Some((slot, stamp));
                return usize::try_from(n).unwrap();
            }
            self.told[slot] = stamp;
        }
        unreachable!("the mount is killed")
    }

    /// Compares with what is there, and settles what was unsure.
    fn check(&mut self, file: &File) {
        for slot in 0..SLOTS {
            let mut found = vec![0; SLOT];
            file.read_exact_at(&mut found, self.at(slot)).unwrap();
            let old = if self.told[slot] == 0 { vec![0; SLOT] } else { noise(self.told[slot], SLOT) };
            if found == old {
                continue;
            }
            let (unsure, stamp) = self.unsure.expect("a slot changed that nobody wrote to");
            assert_eq!(unsure, slot, "an acknowledged write is lost");
            self.whole_sectors(slot, &found, &old, &noise(stamp, SLOT));
            file.write_all_at(&old, self.at(slot)).unwrap();
        }
        self.unsure = None;
    }

    /// Each sector is wholly before or wholly after the write that was not answered.
    fn whole_sectors(&self, slot: usize, found: &[u8], old: &[u8], new: &[u8]) {
        let into = usize::try_from(self.at(slot) % 4096).unwrap();
        let mut start = 0;
        while start < SLOT {
            let end = ((start + into) / 4096 * 4096 + 4096 - into).min(SLOT);
            let part = &found[start..end];
            assert!(part == &old[start..end] || part == &new[start..end], "slot {slot}: a torn sector");
            start = end;
        }
    }
}

#[test]
fn nothing_that_was_acknowledged_is_lost_by_a_kill_at_any_moment() {
    let rounds = if std::env::var_os("WRAPDISK_LONG").is_some() { 300 } else { 24 };
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let mut writers = [Writer::new(0), Writer::new(SLOTS)];
    let mut told = 0;
    for round in 0..rounds {
        // A different moment each time: from before the first answer to after some hundred.
        let delay = Duration::from_micros(u64::from_le_bytes(noise(round, 8).try_into().unwrap()) % 60_000);
        let mount = home.mount("vm.wd", &[]);
        std::thread::scope(|scope| {
            let users: Vec<_> = (1..)
                .zip(&mut writers)
                .map(|(n, writer)| {
                    let file = &mount.file;
                    scope.spawn(move || writer.write_until_error(file, round * 2 + n))
                })
                .collect();
            std::thread::sleep(delay);
            send(mount.pid, Signal::SIGKILL);
            told += users.into_iter().map(|user| user.join().unwrap()).sum::<usize>();
        });
        mount.wait_for_end();
        mount_again(&home, "vm.wd", &mount.place);
        let file = open(&mount.file);
        for writer in &mut writers {
            writer.check(&file);
        }
        drop(file);
        eventually("unmount", || home.wrapdisk(["umount", "vm.wd"]).status.success().then_some(()));
    }
    assert!(told > 100, "only {told} writes were answered: this shows nothing");
    home.wrapdisk(["check", "vm.wd"]).ok();
}

#[test]
#[should_panic(expected = "an acknowledged write is lost")]
fn a_lost_write_would_be_found() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 << 20).unwrap();
    let mut writer = Writer::new(0);
    writer.told[3] = 77;
    writer.unsure = Some((4, 78));
    writer.check(&file);
}

#[test]
#[should_panic(expected = "a torn sector")]
fn a_torn_sector_would_be_found() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 << 20).unwrap();
    let mut writer = Writer::new(0);
    writer.unsure = Some((4, 78));
    file.write_all_at(&noise(78, SLOT)[..2000], writer.at(4)).unwrap();
    writer.check(&file);
}

// --- one mount a disk ---

/// `FLOCK` lines of the kernel's table that are of this process.
fn locks_of(pid: i32) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/locks").unwrap();
    let line = |l: &str| {
        let fields: Vec<_> = l.split_whitespace().collect();
        (fields[1] == "FLOCK" && fields[4] == pid.to_string()).then(|| {
            let inode = fields[5].rsplit(':').next().unwrap();
            format!("{} {inode}", fields[3])
        })
    };
    table.lines().filter_map(line).collect()
}

#[test]
fn the_lock_is_held_for_life_and_no_longer() {
    use std::os::unix::fs::MetadataExt;
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let inode = std::fs::metadata(&disk).unwrap().ino();
    for (options, kind) in [(&[][..], "WRITE"), (&["--read-only"], "READ")] {
        let mount = home.mount("vm.wd", options);
        let expected = vec![format!("{kind} {inode}")];
        assert_eq!(locks_of(mount.pid), expected);
        let file = File::open(&mount.file).unwrap();
        file.read_exact_at(&mut vec![0; 1 << 20], 0).unwrap();
        home.wrapdisk(["info", "vm.wd"]).ok();
        home.wrapdisk(["check", "vm.wd"]).ok();
        assert_eq!(locks_of(mount.pid), expected, "and after others have looked at the disk");
        drop(file);
        let pid = mount.pid;
        mount.unmount();
        assert_eq!(locks_of(pid), Vec::<String>::new());
    }
}

#[test]
fn a_second_mount_is_refused_and_names_who_has_the_disk() {
    let home = Home::ready();
    let disk = home.create("vm.wd", "4M", &[]);
    let other = home.text("other");
    std::fs::create_dir(other).unwrap();
    for (first, second) in [(&[][..], &[][..]), (&[], &["--read-only"]), (&["--read-only"], &[])] {
        let mount = home.mount("vm.wd", first);
        let again = || home.wrapdisk([&["mount", "vm.wd", other], second].concat());
        let expected = format!(
            "wrapdisk: {disk}: in use: mounted at {place} by process {pid}\n  unmount it first: wrapdisk umount {place}",
            disk = disk.display(),
            place = mount.place.display(),
            pid = mount.pid
        );
        assert_eq!(again().fails(1), expected);
        assert!(!is_mounted(Path::new(other)));

        // Somebody who cannot ask the mount still learns whose the lock is.
        let stranger = Home::new();
        let refused =
            stranger.wrapdisk([&["mount", disk.to_str().unwrap(), other], second].concat()).fails(1);
        let holder = format!("{}: in use by another process (pid {}, wrapdisk)\n", disk.display(), mount.pid);
        assert!(refused.contains(&holder), "{refused}");
        mount.unmount();
    }
    let mount = home.mount("vm.wd", &["--read-only"]);
    home.mount_at("vm.wd", Path::new(other), &["--read-only"]).unmount();
    mount.unmount();
}

#[test]
fn of_two_mounts_at_once_exactly_one_wins() {
    let home = Home::ready();
    home.create("vm.wd", "4M", &[]);
    let places: [PathBuf; 2] = ["a", "b"].map(|name| home.path(name));
    for place in &places {
        std::fs::create_dir(place).unwrap();
    }
    for _ in 0..8 {
        let start = std::sync::Barrier::new(2);
        let [a, b] = std::thread::scope(|scope| {
            let racers = places.each_ref().map(|place| {
                let mut command = home.command(["mount", "vm.wd", place.to_str().unwrap()]);
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    finish(&mut command)
                })
            });
            racers.map(|racer| racer.join().unwrap())
        });
        let (winner, loser) = if a.status.success() { (a, b) } else { (b, a) };
        winner.ok();
        let refused = loser.fails(1);
        assert!(refused.contains("vm.wd: in use"), "{refused}");
        assert_eq!(places.iter().filter(|place| is_mounted(place)).count(), 1);
        eventually("unmount", || home.wrapdisk(["umount", "vm.wd"]).status.success().then_some(()));
    }
}
