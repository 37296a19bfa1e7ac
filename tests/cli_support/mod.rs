//! What tests of the command line need beyond `support`: a terminal for prompts, a user without rights, a machine of
//! its own for what is not this test's to change, and small file systems.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::support::{Done, Loop, eventually, finish, run};

/// The user that tests become: "nobody", whom every machine knows (fusermount3 asks for the name).
pub(crate) const USER: u32 = 65_534;

/// A pty whose other end is the controlling terminal of a program.
pub(crate) struct Terminal {
    master: File,
    slave: Option<File>,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

impl Terminal {
    /// Starts a program on a new terminal.
    #[track_caller]
    pub(crate) fn start(program: &Command) -> Self {
        let pty = nix::pty::openpty(None, None).expect("a pty");
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        let stdio = || Stdio::from(slave.try_clone().expect("a descriptor"));
        // setsid(1) gives the program its terminal without a line of unsafe code here.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(program.get_current_dir().unwrap_or(Path::new("/")));
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("setsid");
        let said = Arc::new(Mutex::new(String::new()));
        let reader = std::thread::spawn({
            let (mut master, said) = (master.try_clone().expect("a descriptor"), Arc::clone(&said));
            move || {
                let mut buf = [0; 4096];
                // EIO once nobody has the other end.
                while let Ok(n @ 1..) = master.read(&mut buf) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&buf[..n]));
                }
            }
        });
        Self { master, slave: Some(slave), said, reader: Some(reader), child }
    }

    /// Everything on the screen so far.
    pub(crate) fn screen(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let start = std::time::Instant::now();
        while !self.screen().contains(text) {
            assert!(start.elapsed().as_secs() < 60, "no \"{text}\" on the terminal: {}", self.screen());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Types.
    #[track_caller]
    pub(crate) fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    /// Waits for a question and answers it.
    #[track_caller]
    pub(crate) fn answer(&mut self, question: &str, answer: &str) {
        self.wait_for(question);
        self.types(&format!("{answer}\n"));
    }

    /// Does the terminal show what is typed?
    #[track_caller]
    pub(crate) fn echoes(&self) -> bool {
        tcgetattr(&self.master)
            .expect("a terminal")
            .local_flags
            .contains(LocalFlags::ECHO | LocalFlags::ICANON)
    }

    /// The process on this terminal.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end; `out` is the screen, with line ends as a program writes them.
    #[track_caller]
    pub(crate) fn end(mut self) -> (Done, bool) {
        let status = eventually("the end of the program", || self.child.try_wait().expect("wait"));
        let echoes = self.echoes();
        drop(self.slave.take());
        self.reader.take().expect("one end").join().expect("the reader");
        let out = self.screen().replace("\r\n", "\n");
        (Done { status, out, err: String::new() }, echoes)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same program as an ordinary user without a group or a right, and with nothing in its environment but a PATH.
pub(crate) fn as_user(command: &Command) -> Command {
    let id = USER.to_string();
    let mut user = Command::new("setpriv");
    user.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(command.get_program());
    user.args(command.get_args()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    user.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    user.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    user
}

/// Hands a file or folder to the ordinary user.
#[track_caller]
pub(crate) fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).expect("chown needs root");
}

/// For the beginning of such a script: /dev/fuse as udev makes it on most machines, for everybody.
pub(crate) const FUSE_FOR_ALL: &str = "fuse=$(mktemp -d); trap 'umount -l $fuse; rmdir $fuse' EXIT
    mount -t tmpfs none $fuse; mknod -m 666 $fuse/fuse c 10 229; mount --bind $fuse/fuse /dev/fuse\n";

/// Runs a script on a machine of its own, as far as mounts and processes go: what it mounts nobody else sees, and what it
/// leaves running ends with it.
#[track_caller]
pub(crate) fn on_a_machine_of_its_own(script: &str, env: &[(&str, &Path)]) -> Done {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "120", "unshare", "--mount", "--propagation", "private"]);
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
    ]);
    command.envs(env.iter().copied()).env_remove("WRAPDISK_HOME").process_group(0);
    finish(&mut command)
}

/// A new ext4 file system in a file, mounted; gone when dropped.
pub(crate) struct SmallDisk {
    pub(crate) place: PathBuf,
    _device: Loop,
}

impl SmallDisk {
    /// `size` as truncate(1) takes it; `folder` holds the image and the mountpoint.
    #[track_caller]
    pub(crate) fn ext4(folder: &Path, size: &str) -> Self {
        let text = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let (image, place) = (folder.join("small.img"), folder.join("small"));
        run("truncate", ["-s", size, &text(&image)]);
        // No reserved blocks: root must meet the end of the space as well.
        run("mkfs.ext4", ["-q", "-m", "0", &text(&image)]);
        std::fs::create_dir(&place).expect("a mountpoint");
        let device = Loop::over(&image, &[]);
        run("mount", [&device.0, &text(&place)]);
        Self { place, _device: device }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(&self.place));
    }
}

/// Writes over the beginning of what is there; a disk cannot be truncated, as `fs::write` would.
#[track_caller]
pub(crate) fn overwrite(file: &Path, bytes: &[u8]) {
    let opened = File::options().write(true).open(file);
    opened
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .expect("a writable file");
}

/// The names in a folder, sorted.
#[track_caller]
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The permission bits.
#[track_caller]
pub(crate) fn mode(path: &Path) -> String {
    use std::os::unix::fs::PermissionsExt;
    let meta = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    format!("{:04o}", meta.permissions().mode() & 0o7777)
}
