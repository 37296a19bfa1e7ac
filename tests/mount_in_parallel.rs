//! Are requests served side by side: does the kernel get the limits that were asked for, do writers of one file run at the
//! same time, and does what neighbours change in one sector at once all arrive?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Home, Mount, eventually, noise, run};

const MIB: usize = 1 << 20;

/// The kernel's own view of a mount's connection.
struct Connection<'a> {
    place: PathBuf,
    mount: &'a Mount<'a>,
}

impl<'a> Connection<'a> {
    /// The control file system is mounted for this test alone.
    fn of(home: &Home, mount: &'a Mount<'a>) -> Self {
        let place = home.path("connections");
        if !place.exists() {
            std::fs::create_dir(&place).unwrap();
            run("mount", ["-t", "fusectl", "fusectl", place.to_str().unwrap()]);
        }
        let device = mount.file.metadata().unwrap().dev();
        Self { place: place.join(nix::sys::stat::minor(device).to_string()), mount }
    }

    fn value(&self, name: &str) -> usize {
        std::fs::read_to_string(self.place.join(name)).unwrap().trim().parse().unwrap()
    }

    fn all_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.mount.pid)).unwrap();
        let stat = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default()
        };
        tasks.map(stat).all(|stat| stat.rsplit(')').next().unwrap().starts_with(" T"))
    }

    /// Stops the daemon, lets `start` start something, waits until as many requests wait as that makes, and goes on.
    fn stopped<R>(&self, waiting: usize, start: impl FnOnce() -> R) -> R {
        let daemon = Pid::from_raw(self.mount.pid);
        kill(daemon, Signal::SIGSTOP).unwrap();
        eventually("every thread to stop", || self.all_stopped().then_some(()));
        let started = start();
        let mut most = 0;
        let full = || {
            most = most.max(self.value("waiting"));
            (most >= waiting).then_some(())
        };
        let seen =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| eventually("requests to wait", full)));
        kill(daemon, Signal::SIGCONT).unwrap();
        assert!(seen.is_ok(), "{most} of {waiting} requests in flight");
        started
    }
}

fn open(mount: &Mount<'_>, flags: i32) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(&mount.file).unwrap()
}

fn off(at: usize) -> u64 {
    u64::try_from(at).unwrap()
}

/// Threads of the daemon that read requests.
fn workers(mount: &Mount<'_>) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", mount.pid)).unwrap();
    let names =
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("fuser-")).count()
}

/// Memory that O_DIRECT accepts.
fn aligned(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    memory.resize(len + 4096, 0);
    let skip = memory.as_ptr().align_offset(4096);
    &mut memory[skip..][..len]
}

#[test]
fn the_kernel_may_keep_a_thousand_requests_in_flight() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let connection = Connection::of(&home, &mount);
    assert_eq!(connection.value("max_background"), 1024);
    assert_eq!(connection.value("congestion_threshold"), 768);
    mount.unmount();
}

#[test]
fn as_many_threads_serve_as_were_asked_for() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let cores = std::thread::available_parallelism().unwrap().get();
    for (options, expected) in [
        (&[][..], cores.clamp(2, 4)),
        (&["--threads", "1"], 1),
        (&["--threads", "8"], 8),
        (&["--threads", "64"], 64),
    ] {
        let mount = home.mount("vm.wd", options);
        eventually("the threads", || (workers(&mount) == expected).then_some(()));
        assert_eq!(std::fs::read(&mount.file).unwrap(), vec![0; MIB]);
        mount.unmount();
    }
    for (option, value) in
        [("--threads", "0"), ("--threads", "65"), ("--max-request", "63K"), ("--max-request", "2M")]
    {
        home.wrapdisk(["mount", "vm.wd", "nowhere", option, value]).fails(2);
    }
}

#[test]
fn no_request_is_larger_than_was_asked_for() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    for (options, largest) in [
        (&[][..], MIB),
        (&["--max-request", "64K"], 64 << 10),
        (&["--max-request", "256K"], 256 << 10),
        (&["--max-request", "1M"], MIB),
    ] {
        let mount = home.mount("vm.wd", options);
        let file = open(&mount, libc::O_DIRECT);
        let mut memory = Vec::new();
        let bytes = aligned(&mut memory, 4 * MIB);
        assert_eq!(file.write_at(bytes, 0).unwrap(), bytes.len());
        assert_eq!(file.read_at(bytes, 0).unwrap(), bytes.len());
        let io = mount.status()["io"].take();
        let expected = u64::try_from(4 * MIB / largest).unwrap();
        assert_eq!(
            (io["writes"].as_u64(), io["reads"].as_u64()),
            (Some(expected), Some(expected)),
            "{options:?}"
        );
        drop(file);
        mount.unmount();
    }
}

#[test]
fn writers_and_readers_of_one_file_do_not_wait_for_each_other() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let connection = Connection::of(&home, &mount);
    for flags in [0, libc::O_DIRECT] {
        // One descriptor for all, as a virtual machine has it.
        let file = std::sync::Arc::new(open(&mount, flags));
        let threads = connection.stopped(16, || {
            let start = |i: usize| {
                let file = std::sync::Arc::clone(&file);
                std::thread::spawn(move || {
                    let mut memory = Vec::new();
                    let bytes = aligned(&mut memory, 4096);
                    bytes.fill(u8::try_from(i).unwrap());
                    let at = off(i % 8 * 4096);
                    if i < 8 {
                        file.write_all_at(bytes, at).unwrap();
                    } else {
                        file.read_exact_at(bytes, at).unwrap();
                    }
                })
            };
            (0..16).map(start).collect::<Vec<_>>()
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let now = std::fs::read(&mount.file).unwrap();
        assert!((0..8).all(|i| now[i * 4096..][..4096].iter().all(|b| usize::from(*b) == i)), "{flags:o}");
    }
    mount.unmount();
}

/// A program that is gone when the test is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn asynchronous_io_reaches_its_depth() {
    let home = Home::ready();
    home.create("vm.wd", "8M", &[]);
    let mount = home.mount("vm.wd", &[]);
    let connection = Connection::of(&home, &mount);
    let args = ["--name=a", "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=64"];
    let rest = [
        "--size=8M",
        "--time_based",
        "--runtime=100",
        "--thread",
        "--output=/dev/null",
        "--allow_file_create=0",
    ];
    let mut fio = Command::new("fio");
    fio.args(args).args(rest).arg(format!("--filename={}", mount.text())).stdin(Stdio::null());
    let mut fio = Running(fio.spawn().expect("fio must be installed"));
    eventually("fio's first writes", || (mount.status()["io"]["writes"].as_u64() > Some(100)).then_some(()));
    connection.stopped(64, || ());
    kill(Pid::from_raw(i32::try_from(fio.0.id()).unwrap()), Signal::SIGINT).unwrap();
    let done = fio.0.wait().unwrap();
    assert_eq!(mount.status()["io"]["errors"], 0, "{done}");
    mount.unmount();
}

/// Eight writers, each with every eighth piece of 512 bytes (or so) of the same 4096-byte sectors.
fn share_sectors(mount: &Mount<'_>, size: usize, piece: usize) {
    let rounds = if std::env::var_os("WRAPDISK_LONG").is_some() { 50 } else { 3 };
    let pieces = size / piece;
    let expected = |round: u64| noise(round, pieces * piece);
    for round in 1..=rounds {
        let data = &expected(round);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                scope.spawn(move || {
                    let file = open(mount, if writer % 2 == 0 { libc::O_DIRECT } else { 0 });
                    for i in (writer..pieces).step_by(8) {
                        let mut memory = Vec::new();
                        let bytes = aligned(&mut memory, piece);
                        bytes.copy_from_slice(&data[i * piece..][..piece]);
                        file.write_all_at(bytes, off(i * piece)).unwrap();
                    }
                });
            }
        });
        let now = std::fs::read(&mount.file).unwrap();
        let wrong = (0..pieces).filter(|i| now[i * piece..][..piece] != data[i * piece..][..piece]).count();
        assert_eq!(wrong, 0, "round {round}: {wrong} of {pieces} pieces of {piece} bytes were lost");
    }
}

#[test]
fn eight_writers_in_every_sector_lose_nothing() {
    let home = Home::ready();
    home.create("vm.wd", "1M", &[]);
    for options in [&["--threads", "8"][..], &["--threads", "8", "--cache-size", "0"], &["--threads", "1"]] {
        let mount = home.mount("vm.wd", options);
        share_sectors(&mount, MIB, 512);
        share_sectors(&mount, MIB, 333);
        mount.unmount();
    }
    home.wrapdisk(["check", "vm.wd"]).ok();
}
