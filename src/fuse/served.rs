//! The requests that need the key: each is done, or refused, or done again when the key is back (`--on-revoke freeze`).
//!
//! What waits is the request with its reply, never the thread. Unmounting by force (`umount -f`) ends the waiting, and so does
//! a signal that ends whoever asked.

use std::sync::Arc;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};

use super::adapter::errno;
use super::look::Look;
use crate::disk::{Asker, Image, Kept, Verdict};
use crate::error::{Error, ErrorKind};
use crate::units::{ByteLen, ByteOffset, Extent};

pub(super) struct Served<I> {
    pub(super) image: Arc<I>,
    pub(super) look: Look,
}

fn is_revoked(e: &Error) -> bool {
    e.kind() == ErrorKind::Revoked
}

impl<I: Image> Served<I> {
    fn park(&self, asker: Asker, bytes: usize, job: impl FnOnce(Verdict) + Send + 'static) {
        self.image.park(asker, bytes, Box::new(job));
    }

    pub(super) fn read(self: &Arc<Self>, asker: Asker, offset: ByteOffset, len: ByteLen, reply: ReplyData) {
        let mut reply = Some(reply);
        let done = self.image.read(offset, len, &mut |bytes| {
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        let (Err(e), Some(reply)) = (done, reply) else { return };
        if !is_revoked(&e) {
            return reply.error(errno(&e));
        }
        let served = Arc::clone(self);
        self.park(asker, 0, move |verdict| match verdict {
            Verdict::Retry => served.read(asker, offset, len, reply),
            Verdict::Refuse => reply.error(errno(&e)),
        });
    }

    pub(super) fn write(
        self: &Arc<Self>,
        asker: Asker,
        offset: ByteOffset,
        data: &[u8],
        durable: bool,
        reply: ReplyWrite,
    ) {
        let Ok(len) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        let written = self.image.write(offset, data);
        let e = match written.and_then(|()| if durable { self.image.sync() } else { Ok(()) }) {
            Ok(()) => {
                self.look.touch();
                return reply.written(len);
            }
            Err(e) => e,
        };
        if !is_revoked(&e) {
            return reply.error(errno(&e));
        }
        let Ok(kept) = Kept::copy_of(data) else { return reply.error(errno(&e)) };
        let served = Arc::clone(self);
        self.park(asker, data.len(), move |verdict| match verdict {
            Verdict::Retry => served.write(asker, offset, kept.bytes(), durable, reply),
            Verdict::Refuse => reply.error(errno(&e)),
        });
    }

    pub(super) fn zero(
        self: &Arc<Self>,
        asker: Asker,
        offset: ByteOffset,
        len: ByteLen,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.zero_on_disk(offset, len, mode) {
            Ok(()) => {
                self.look.touch();
                reply.ok();
            }
            Err(e) if is_revoked(&e) => {
                let served = Arc::clone(self);
                self.park(asker, 0, move |verdict| match verdict {
                    Verdict::Retry => served.zero(asker, offset, len, mode, reply),
                    Verdict::Refuse => reply.error(errno(&e)),
                });
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    /// Zeroes the part of a range that lies on the disk: with KEEP_SIZE the rest is nothing (fallocate(2)), without it the
    /// file would have to grow.
    fn zero_on_disk(&self, offset: ByteOffset, len: ByteLen, mode: i32) -> Result<(), Error> {
        let asked = match Extent::new(offset, len) {
            Some(extent) if mode & libc::FALLOC_FL_KEEP_SIZE != 0 => extent.clamp_to(self.image.len()).len(),
            _ => len,
        };
        if asked.is_zero() {
            return Ok(());
        }
        if mode & libc::FALLOC_FL_PUNCH_HOLE == 0 {
            self.image.write_zeroes(offset, asked)
        } else {
            self.image.discard(offset, asked)
        }
    }

    pub(super) fn seek(self: &Arc<Self>, asker: Asker, from: ByteOffset, whence: i32, reply: ReplyLseek) {
        let found = match whence {
            libc::SEEK_DATA => self.image.seek_data(from),
            libc::SEEK_HOLE => self.image.seek_hole(from).map(Some),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(Some(at)) => match i64::try_from(at.get()) {
                Ok(at) => reply.offset(at),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) if is_revoked(&e) => {
                let served = Arc::clone(self);
                self.park(asker, 0, move |verdict| match verdict {
                    Verdict::Retry => served.seek(asker, from, whence, reply),
                    Verdict::Refuse => reply.error(errno(&e)),
                });
            }
            Err(e) => reply.error(errno(&e)),
        }
    }
}
