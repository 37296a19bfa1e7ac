//! An ordinary user in a mount namespace of its own: what a test changes of the system (`/etc/fuse.conf`, `/dev/fuse`,
//! what is installed) nobody else sees, and every mount ends with the namespace. Stands on the rig in `tests/support`.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{Done, Home, WRAPDISK, finish, run};

/// Who a command runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Uid and gid 4242: owns everything in the home.
    Alice,
    /// Uid and gid 4243.
    Bob,
    /// As the tests themselves.
    Root,
    /// Root as in most containers: without the right to mount.
    Contained,
}

const SETPRIV: &str = "--clear-groups --inh-caps=-all";

impl Who {
    fn setpriv(self) -> String {
        match self {
            Self::Alice => format!("--reuid 4242 --regid 4242 {SETPRIV}"),
            Self::Bob => format!("--reuid 4243 --regid 4243 {SETPRIV}"),
            Self::Root => "--clear-groups".to_owned(),
            Self::Contained => "--bounding-set=-sys_admin --inh-caps=-sys_admin".to_owned(),
        }
    }
}

/// The namespace. It lives as long as a shell waits for this value's end.
pub(crate) struct World<'a> {
    home: &'a Home,
    holder: Child,
}

/// Run in every new namespace: users who exist, a /dev/fuse for all, a known /etc/fuse.conf, and the program where
/// everybody may run it.
const SETUP: &str = r#"
set -e
cd "$ROOT"
mkdir -p world
mount -t tmpfs -o mode=755,dev tmpfs world
cp /etc/passwd world/passwd
printf '%s\n' 'alice:x:4242:4242::/:/bin/sh' 'bob:x:4243:4243::/:/bin/sh' >> world/passwd
mount --bind world/passwd /etc/passwd
echo '# nothing is allowed' > world/fuse.conf
mount --bind world/fuse.conf /etc/fuse.conf
mknod -m 666 world/fuse c 10 229
mount --bind world/fuse /dev/fuse
touch world/wrapdisk
mount --bind "$WRAPDISK" world/wrapdisk
"#;

/// Makes /etc/fuse.conf say `user_allow_other`.
pub(crate) const ALLOW_OTHER: &str = "echo user_allow_other > world/fuse.conf";

/// Everything in /usr/bin but fusermount3 and its elder.
pub(crate) const NO_FUSERMOUNT: &str = r#"mkdir world/bin
mount --bind /usr/bin world/bin
PATH="$PATH:$PWD/world/bin"
mount -t tmpfs -o mode=755 tmpfs /usr/bin
ln -s "$PWD"/world/bin/* /usr/bin/
rm -f /usr/bin/fusermount3 /usr/bin/fusermount"#;

/// A /dev with nothing in it but what every program needs.
pub(crate) const NO_DEV_FUSE: &str = "mount -t tmpfs -o mode=755,dev tmpfs /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9";

impl<'a> World<'a> {
    /// A namespace for this home, which becomes Alice's; `more` is a script that runs in it at last.
    #[track_caller]
    pub(crate) fn new(home: &'a Home, more: &str) -> Self {
        std::fs::set_permissions(home.root(), std::fs::Permissions::from_mode(0o755))
            .expect("our own folder");
        run("chown", [OsStr::new("-R"), OsStr::new("4242:4242"), home.root().as_os_str()]);
        let script = format!("{SETUP}\n{more}\necho ready\nread -r end || true");
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--", "bash", "-c", &script])
            .env("ROOT", home.root())
            .env("WRAPDISK", WRAPDISK)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare, of util-linux");
        let mut said = String::new();
        let out = holder.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut said).expect("text");
        let world = Self { home, holder };
        assert_eq!(said, "ready\n", "the namespace was not made; see above");
        world
    }

    /// A command in the namespace, in the home's folder.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, who: Who, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--", "bash", "-c"]);
        // Not --wd: that folder would be the one of the tests' namespace.
        command.arg(r#"cd "$0" && exec setpriv "$@""#).arg(self.home.root());
        command.args(who.setpriv().split_whitespace()).arg("--").args(args);
        command.env("WRAPDISK_HOME", self.path("home")).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, who: Who, args: impl IntoIterator<Item = S>) -> Done {
        finish(&mut self.command(who, args))
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn wrapdisk(&self, who: Who, args: &[&str]) -> Done {
        let program = self.path("world/wrapdisk");
        let program = program.to_str().expect("temporary paths are UTF-8");
        self.run(who, [&[program], args].concat())
    }

    /// Lines of the mount table that hold this home's name.
    pub(crate) fn table(&self) -> Vec<String> {
        let table =
            std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap_or_default();
        let ours = |line: &&str| line.contains("fuse.wrapdisk") && line.contains(self.root());
        table.lines().filter(ours).map(str::to_owned).collect()
    }

    fn root(&self) -> &str {
        self.home.root().to_str().expect("temporary paths are UTF-8")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path(name)
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for line in self.table().iter().rev() {
            if let Some(place) = line.split(' ').nth(4) {
                let holder = self.holder.id().to_string();
                let _ = finish(Command::new("nsenter").args(["-t", &holder, "-m", "umount", "-l", place]));
            }
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
