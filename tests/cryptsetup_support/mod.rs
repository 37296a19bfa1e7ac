//! cryptsetup as the judges use it: without device mapper, and with keyslots that cost nothing where cost is not the
//! question. Stands on the rig in `tests/support`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Done, Home, eventually, finish, run};

/// Options of a keyslot that opens in no time.
pub(crate) const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// Where the data begins in a container of the default geometry, ours and theirs.
pub(crate) const DATA: usize = 16 << 20;

/// Runs cryptsetup to its end.
#[track_caller]
pub(crate) fn cryptsetup<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Done {
    finish(Command::new("cryptsetup").args(args))
}

/// The header's JSON as cryptsetup reads it.
#[track_caller]
pub(crate) fn dump_json(container: &str) -> Value {
    parse(&cryptsetup(["luksDump", "--dump-json-metadata", container]).ok())
}

#[track_caller]
pub(crate) fn parse(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// A copy of a container, holes kept.
#[track_caller]
pub(crate) fn copy(from: &str, to: &str) {
    run("cp", ["--sparse=always", from, to]);
}

/// A file of this home with these bytes; its path.
#[track_caller]
pub(crate) fn put(home: &Home, name: &str, bytes: &[u8]) -> &'static str {
    std::fs::write(home.path(name), bytes).expect("a temporary file");
    home.text(name)
}

/// A container made by cryptsetup: 16 MiB of header and `data` bytes of zeros for ciphertext.
#[track_caller]
pub(crate) fn luks_format(
    home: &Home,
    name: &str,
    data: u64,
    passphrase: &str,
    options: &[&str],
) -> &'static str {
    let container = home.text(name);
    let file = std::fs::File::create(container).expect("a temporary file");
    file.set_len(DATA as u64 + data).expect("a sparse file");
    let format = ["luksFormat", "-q", "--type", "luks2", "--key-size", "512", "--key-file", passphrase];
    cryptsetup([&format, options, &[container]].concat()).ok();
    container
}

/// A cheap keyslot for the passphrase in a file, by right of the volume key.
#[track_caller]
pub(crate) fn add_slot(container: &str, volume_key: &str, passphrase: &str, options: &[&str]) {
    let add = ["luksAddKey", "-q", "--volume-key-file", volume_key, "--key-size", "512"];
    cryptsetup([&add, options, &[container, passphrase]].concat()).ok();
}

/// The volume key of a disk, by `wrapdisk volume-key`, in a new file `NAME.vk`.
#[track_caller]
pub(crate) fn volume_key(home: &Home, name: &str) -> &'static str {
    let file = home.text(&format!("{name}.vk"));
    home.wrapdisk(["volume-key", name, "--yes", "--output", file]).ok();
    file
}

/// The plaintext as cryptsetup decrypts it: all whole sectors behind a header area of the default size. Works on a copy.
#[track_caller]
pub(crate) fn decrypted_by_cryptsetup(home: &Home, container: &str, passphrase: &str) -> Vec<u8> {
    decrypted_after(home, container, passphrase, DATA)
}

/// The same of a data area that begins at `offset`.
#[track_caller]
pub(crate) fn decrypted_after(home: &Home, container: &str, passphrase: &str, offset: usize) -> Vec<u8> {
    let (plain, header) = (home.text("decrypted"), home.text("decrypted.hdr"));
    copy(container, plain);
    let decrypt = ["reencrypt", "-q", "--decrypt", "--force-offline-reencrypt", "--key-file", passphrase];
    cryptsetup([&decrypt as &[&str], &["--header", header, plain]].concat()).ok();
    let mut bytes = std::fs::read(plain).expect("the decrypted copy");
    // The plaintext moved to the front; the file keeps its length.
    bytes.truncate(bytes.len() - offset);
    for file in [plain, header] {
        std::fs::remove_file(file).expect("what was just made");
    }
    bytes
}

/// Flips one bit.
#[track_caller]
pub(crate) fn flip(file: &Path, offset: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(file).expect("the container");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset as u64).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], offset as u64).expect("a byte");
}

/// A command in the background: killed when dropped, also while stopped.
pub(crate) struct Background(Child);

impl Background {
    #[track_caller]
    pub(crate) fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|e| panic!("{:?} must be installed: {e}", command.get_program())))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }

    /// Its exit code, or nothing while it runs.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().expect("a child").map(|status| status.code().unwrap_or(-1))
    }

    /// Its exit code.
    #[track_caller]
    pub(crate) fn end(mut self) -> i32 {
        eventually("the end of a command in the background", || self.ended())
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("a live child");
    }

    /// Stopped by a signal, or at its end.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        matches!(
            stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()),
            Some('T' | 'Z') | None
        )
    }

    /// The lines of the kernel's table about whole-file locks that it holds (`waiting`: waits for).
    pub(crate) fn locks(&self, waiting: bool) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/locks").expect("the kernel's table of locks");
        let pid = self.pid().to_string();
        let mine = |line: &&str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.contains(&"FLOCK") && fields.contains(&pid.as_str()) && fields.contains(&"->") == waiting
        };
        table.lines().filter(mine).map(str::to_owned).collect()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
