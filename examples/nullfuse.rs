//! The ceiling of the benches: the product's own FUSE session over a bare file. Same adapter, same threads, same reads
//! and writes of the backing file; no crypto, no cache, no locks.
//!
//! `nullfuse BACKING MOUNTPOINT [--threads N] [--max-request BYTES]`; unmount to end it.
#![allow(clippy::print_stdout)] // a program that talks to a bench

use std::path::Path;
use std::sync::Arc;

use wrapdisk::disk::Image;
use wrapdisk::error::Result;
use wrapdisk::fuse::{MountConfig, Session, mountpoint};
use wrapdisk::secret::SecretBytes;
use wrapdisk::store::{Access, BackingStore, FileStore};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

struct BareFile {
    store: FileStore,
    len: ByteLen,
}

thread_local! {
    static BUF: std::cell::RefCell<SecretBytes> =
        std::cell::RefCell::new(SecretBytes::zeroed(1 << 20).expect("a MiB of memory"));
}

impl Image for BareFile {
    fn len(&self) -> ByteLen {
        self.len
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: ByteOffset, len: ByteLen, reply: &mut dyn FnMut(&[u8])) -> Result<()> {
        let len = Extent::new(offset, len).expect("the kernel's range").clamp_to(self.len).len();
        BUF.with_borrow_mut(|buf| {
            let buf = &mut buf.expose_mut()[..len.to_usize().expect("a request")];
            self.store.read_at(offset, buf)?;
            reply(buf);
            Ok(())
        })
    }
    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.store.write_at(offset, data)
    }
    fn discard(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.store.punch(Extent::new(offset, len).expect("the kernel's range"))
    }
    fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.discard(offset, len)
    }
    fn sync(&self) -> Result<()> {
        self.store.sync()
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.store.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.store.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.store.allocated()
    }
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("nullfuse: {}", e.chain());
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).and_then(|v| v.parse::<u32>().ok())
    };
    let (Some(backing), Some(place)) = (args.get(1), args.get(2)) else {
        eprintln!("usage: nullfuse BACKING MOUNTPOINT [--threads N] [--max-request BYTES]");
        return Ok(());
    };
    let store = FileStore::open(Path::new(backing), Access::ReadWrite)?;
    let len = store.len()?;
    let (mountpoint, layout) = mountpoint::prepare(Path::new(place), false)?;
    let config = MountConfig {
        source: backing.into(),
        mountpoint,
        layout,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        allow_other: false,
        threads: option("--threads").and_then(|n| usize::try_from(n).ok()),
        max_request: option("--max-request"),
    };
    let session = Session::mount(Arc::new(BareFile { store, len }), config)?;
    println!("{}", session.presented().display());
    session.run()
}
