//! Passphrases and confirmations: from the terminal or a file, never from the command line.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroize;

use super::output;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::secret::SecretBytes;

/// Longest passphrase file. cryptsetup's default limit for keyfiles is 8 MiB; nobody types that.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Asks on the terminal; with `twice`, both answers must agree.
///
/// # Errors
/// `Usage` without a terminal, `InvalidInput` when the two differ or nothing was typed.
pub(super) fn passphrase(question: &str, twice: bool) -> Result<SecretBytes> {
    // On Ctrl-C rpassword raises the signal while the terminal still has its echo off: let it wait until that is back.
    let interrupt = SigSet::from(Signal::SIGINT);
    interrupt.thread_block().io_at("hold back signals", "")?;
    let answer = {
        let _quiet = Quiet::terminal();
        answers(question, twice)
    };
    interrupt.thread_unblock().io_at("let signals through", "")?;
    answer
}

fn answers(question: &str, twice: bool) -> Result<SecretBytes> {
    let first = ask(&format!("{question}: "))?;
    if first.is_empty() {
        return Err(nothing_typed());
    }
    if twice {
        let second = ask(&format!("{question} (again): "))?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(first.expose(), second.expose())) {
            return Err(Error::new(ErrorKind::InvalidInput, "passphrase: the two answers differ"));
        }
    }
    Ok(first)
}

/// The terminal as rpassword wants it, from before the first question until after the last answer: rpassword asks first and
/// changes the terminal then, so what somebody types ahead would be shown, and a Ctrl-C would get lost.
struct Quiet(File, Termios);

impl Quiet {
    /// `None` without a terminal, which the question will find out.
    fn terminal() -> Option<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let before = tcgetattr(&terminal).ok()?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(&terminal, SetArg::TCSANOW, &quiet).ok()?;
        Some(Self(terminal, before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.0, SetArg::TCSANOW, &self.1);
    }
}

fn nothing_typed() -> Error {
    Error::new(ErrorKind::InvalidInput, "passphrase: found nothing, allowed at least one character")
}

fn ask(question: &str) -> Result<SecretBytes> {
    let mut typed = match rpassword::prompt_password(question) {
        Ok(typed) => typed,
        // Ctrl-D.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(nothing_typed()),
        Err(e) => {
            return Err(Error::new(ErrorKind::Usage, "passphrase: no terminal to ask on")
                .caused_by(e)
                .hint("give it in a file: --passphrase-file FILE (--recovery-file for a new disk)"));
        }
    };
    // rpassword hands out a String; its bytes move into a secret and the String is wiped.
    let secret = SecretBytes::zeroed(typed.len()).map(|mut secret| {
        secret.expose_mut().copy_from_slice(typed.as_bytes());
        secret
    });
    typed.zeroize();
    secret
}

/// Reads a passphrase file; `-` is standard input. One newline at the end is not part of the passphrase (ON-DISK section 9).
///
/// # Errors
/// `NotFound`, `PermissionDenied`, `InvalidInput` when empty or too long.
pub(super) fn passphrase_file(path: &Path) -> Result<SecretBytes> {
    let mut secret = secret_file(path)?;
    let len = without_newline(secret.expose(), path)?.len();
    secret.truncate(len);
    Ok(secret)
}

/// The passphrase in a text file.
///
/// # Errors
/// `InvalidInput` when nothing is left.
pub(super) fn without_newline<'a>(text: &'a [u8], path: &Path) -> Result<&'a [u8]> {
    match text.strip_suffix(b"\n").unwrap_or(text) {
        [] => {
            let message = "passphrase file: found nothing, allowed at least one byte";
            Err(Error::new(ErrorKind::InvalidInput, message).at(path))
        }
        passphrase => Ok(passphrase),
    }
}

/// Reads a file that holds a secret, straight into secret memory; `-` is standard input.
///
/// # Errors
/// As [`passphrase_file`].
pub(super) fn secret_file(path: &Path) -> Result<SecretBytes> {
    let mut source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(Unbuffered)
    } else {
        Box::new(std::fs::File::open(path).io_at("open", path)?)
    };
    let mut secret = SecretBytes::zeroed(4096)?;
    let mut filled = 0;
    loop {
        if filled == secret.len() {
            if filled as u64 >= MAX_FILE {
                return Err(
                    Error::new(ErrorKind::InvalidInput, format!("found more than {MAX_FILE} bytes")).at(path)
                );
            }
            let mut larger = SecretBytes::zeroed(secret.len() * 2)?;
            larger.expose_mut()[..filled].copy_from_slice(secret.expose());
            secret = larger;
        }
        match source.read(&mut secret.expose_mut()[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", e).at(path)),
        }
    }
    secret.truncate(filled);
    Ok(secret)
}

/// Standard input without std's buffer, which would keep a copy of the secret.
struct Unbuffered;

impl Read for Unbuffered {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::read(std::io::stdin(), buf)?)
    }
}

/// Asks for the word "yes" on the terminal; `assumed` (`--yes`) answers for scripts.
///
/// # Errors
/// `Usage` without a terminal and without `--yes`; `Other` for any other answer.
pub(super) fn confirm(question: &str, assumed: bool) -> Result<()> {
    if assumed {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::Usage, format!("{question}: not confirmed"))
            .hint("add --yes to do it without being asked"));
    }
    output::say(&format!("{question}. Type yes to go on: "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).io_at("read the answer", "")?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Other, "not confirmed; nothing was done"))
    }
}
