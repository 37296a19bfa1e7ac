//! The file of a whole vault's backup: a stream of sealed chunks under a passphrase.
//!
//! Header (84 bytes): magic, salt (16), Argon2id's cost (12), nonce prefix (16), key check (16). Then chunks of 64 KiB and their
//! tag, XChaCha20-Poly1305, nonce = prefix || index u64be, AAD = header || 1 for the last chunk, 0 before (the STREAM
//! construction: no chunk can be cut, moved or repeated).
//!
//! Must never see: what is in it.
//! Invariants: nothing is handed out before its tag was checked; plaintext lies in secret memory.

use std::io::{self, Read, Write};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::passphrase::{Cost, SALT, derive};
use super::seal::{NONCE, TAG};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Secret, SecretBytes, random, scrubbed};

const MAGIC: &[u8; 24] = b"WRAPDISK VAULT BACKUP 1\n";
const CHECK: usize = 16;
const PREFIX: usize = NONCE - 8;
const HEADER: usize = MAGIC.len() + SALT + 12 + PREFIX + CHECK;
const CHUNK: usize = 64 << 10;

struct Keys {
    header: [u8; HEADER],
    cipher: XChaCha20Poly1305,
    index: u64,
}

impl Keys {
    /// Stretches the passphrase: the cipher, and what tells a wrong passphrase from a damaged file.
    fn new(passphrase: &[u8], salt: &[u8; SALT], cost: Cost, prefix: &[u8; PREFIX]) -> Result<Self> {
        let stretched = derive(passphrase, salt, cost)?;
        let expand = |label: &[u8], out: &mut [u8]| {
            scrubbed(|| Hkdf::<Sha256>::new(None, stretched.expose()).expand(label, out))
                .map_err(|_| Error::new(ErrorKind::Other, "derive the key of a backup"))
        };
        let key = Secret::<32>::try_from_fn(|out| expand(b"wrapdisk/vault/whole/v1", out))?;
        let mut check = [0; CHECK];
        expand(b"wrapdisk/vault/whole/check/v1", &mut check)?;
        let header = [&MAGIC[..], salt, &cost.to_bytes(), prefix, &check].concat();
        Ok(Self {
            header: header.try_into().map_err(|_| Error::new(ErrorKind::Other, "header of a backup"))?,
            cipher: XChaCha20Poly1305::new(key.expose().into()),
            index: 0,
        })
    }

    fn next(&mut self, last: bool) -> (XNonce, Vec<u8>) {
        let mut nonce = [0; NONCE];
        nonce[..PREFIX].copy_from_slice(&self.header[HEADER - CHECK - PREFIX..HEADER - CHECK]);
        nonce[PREFIX..].copy_from_slice(&self.index.to_be_bytes());
        self.index += 1;
        (XNonce::from(nonce), [&self.header[..], &[u8::from(last)]].concat())
    }
}

/// Seals what is written to it.
pub(super) struct Sealer<W> {
    out: W,
    keys: Keys,
    chunk: SecretBytes,
    filled: usize,
}

impl<W: Write> Sealer<W> {
    pub(super) fn new(mut out: W, passphrase: &[u8], cost: Cost) -> Result<Self> {
        let (mut salt, mut prefix) = ([0; SALT], [0; PREFIX]);
        random(&mut salt)?;
        random(&mut prefix)?;
        let keys = Keys::new(passphrase, &salt, cost, &prefix)?;
        out.write_all(&keys.header).map_err(|e| Error::io("write the backup", e))?;
        Ok(Self { out, keys, chunk: SecretBytes::zeroed(CHUNK)?, filled: 0 })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let (nonce, aad) = self.keys.next(last);
        let body = &mut self.chunk.expose_mut()[..self.filled];
        let tag = self
            .keys
            .cipher
            .encrypt_inout_detached(&nonce, &aad, (&mut *body).into())
            .map_err(|_| io::Error::other("seal the backup"))?;
        self.out.write_all(body)?;
        self.out.write_all(&tag)?;
        self.filled = 0;
        Ok(())
    }

    /// Ends the stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == CHUNK {
            self.seal(false)?;
        }
        let take = bytes.len().min(CHUNK - self.filled);
        self.chunk.expose_mut()[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
        self.filled += take;
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens what a [`Sealer`] sealed.
pub(super) struct Opener<R> {
    from: R,
    keys: Keys,
    chunk: SecretBytes,
    /// Of `chunk`: what was opened and not handed out yet.
    ready: std::ops::Range<usize>,
    /// The first byte of the next chunk: only the last has none behind it.
    ahead: Option<u8>,
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// # Errors
    /// `Damaged` (no backup, or cut), `Unsupported` (cost), `WrongKey`.
    pub(super) fn new(mut from: R, passphrase: &[u8]) -> Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).map_err(|e| damaged("it is too short").caused_by(e))?;
        let rest = header.strip_prefix(MAGIC).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                "found another file, allowed one that `wrapdisk vault backup` made",
            )
        })?;
        let part = |from: usize| rest.get(from..).unwrap_or_default();
        let (Some(salt), Some(cost), Some(prefix)) = (
            part(0).first_chunk::<SALT>(),
            part(SALT).first_chunk::<12>(),
            part(SALT + 12).first_chunk::<PREFIX>(),
        ) else {
            return Err(damaged("it is too short"));
        };
        let cost = Cost::from_bytes(*cost).ok_or_else(|| damaged("the cost of its passphrase"))?;
        let keys = Keys::new(passphrase, salt, cost, prefix)?;
        if !bool::from(keys.header[HEADER - CHECK..].ct_eq(&header[HEADER - CHECK..])) {
            let message = "the passphrase does not open this backup (or its first bytes are damaged)";
            return Err(Error::new(ErrorKind::WrongKey, message));
        }
        let ahead = one(&mut from).map_err(|e| Error::io("read the backup", e))?;
        let chunk = SecretBytes::zeroed(CHUNK + TAG)?;
        Ok(Self { from, keys, chunk, ready: 0..0, ahead, ended: false })
    }

    fn open(&mut self) -> io::Result<()> {
        let room = self.chunk.expose_mut();
        let mut filled = 0;
        if let Some(byte) = self.ahead.take() {
            room[0] = byte;
            filled = 1;
        }
        while filled < room.len() {
            match self.from.read(&mut room[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.ahead = one(&mut self.from)?;
        let last = self.ahead.is_none();
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "the backup was cut or changed");
        let (body, tag) = room[..filled].split_last_chunk_mut::<TAG>().ok_or_else(cut)?;
        let (nonce, aad) = self.keys.next(last);
        let len = body.len();
        self.keys
            .cipher
            .decrypt_inout_detached(&nonce, &aad, body.into(), &Tag::from(*tag))
            .map_err(|_| cut())?;
        self.ready = 0..len;
        self.ended = last;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            if self.ended {
                return Ok(0);
            }
            self.open()?;
        }
        let take = out.len().min(self.ready.len());
        out[..take].copy_from_slice(&self.chunk.expose()[self.ready.start..self.ready.start + take]);
        self.ready.start += take;
        Ok(take)
    }
}

fn one(from: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("the backup is damaged: {what}"))
}

/// What a failed read means: a chunk that does not open is damage, the rest is the medium's.
pub(super) fn trouble(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidData => damaged(&e.to_string()),
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => Error::io("read the backup", e),
    }
}
