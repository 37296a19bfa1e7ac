//! A medium that fails on purpose below the real program: a container in memory, presented as a file by a FUSE session
//! of this process. What it is told to answer travels through the kernel, as the answers of a real disk do.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use wrapdisk::disk::Image;
use wrapdisk::error::Result;
use wrapdisk::fuse::{Layout, MountConfig, Session};
use wrapdisk::store::{BackingStore, FaultPlan, FaultyStore, MemoryStore};
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

use crate::support::finish;

/// The file `disk.img` in a folder of its own, which fails as its plan says. Gone when dropped.
pub(crate) struct Medium {
    pub(crate) store: Arc<FaultyStore<MemoryStore>>,
    place: PathBuf,
    server: Option<JoinHandle<Result<()>>>,
}

impl Medium {
    /// Holds these bytes, and presents them at `place`.
    #[track_caller]
    pub(crate) fn new(bytes: Vec<u8>, place: &Path) -> Self {
        std::fs::create_dir_all(place).expect("a mountpoint");
        let store = FaultyStore::recording(MemoryStore::from(bytes), FaultPlan::default());
        let store = Arc::new(store.expect("memory can be read"));
        let config = MountConfig {
            source: "faulty".into(),
            mountpoint: place.canonicalize().expect("it is there"),
            layout: Layout::Directory,
            uid: 0,
            gid: 0,
            allow_other: false,
            threads: None,
            max_request: None,
        };
        let session = Session::mount(Arc::new(Presented(Arc::clone(&store))), config).expect("a mount");
        let server = Some(std::thread::spawn(move || session.run()));
        Self { store, place: place.to_owned(), server }
    }

    /// The file.
    pub(crate) fn file(&self) -> PathBuf {
        self.place.join("disk.img")
    }

    /// The same as text.
    pub(crate) fn text(&self) -> &'static str {
        self.file().to_str().expect("temporary paths are UTF-8").to_owned().leak()
    }

    /// When to fail.
    pub(crate) fn plan(&self) -> &FaultPlan {
        self.store.plan()
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let _ = finish(Command::new("umount").arg("-l").arg(&self.place));
        if let Some(server) = self.server.take().filter(|_| !std::thread::panicking()) {
            let _ = server.join();
        }
    }
}

struct Presented(Arc<FaultyStore<MemoryStore>>);

fn extent(offset: ByteOffset, len: ByteLen) -> Extent {
    Extent::new(offset, len).expect("the kernel's range")
}

impl Image for Presented {
    fn len(&self) -> ByteLen {
        self.0.len().expect("memory has a length")
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: ByteOffset, len: ByteLen, reply: &mut dyn FnMut(&[u8])) -> Result<()> {
        let extent = extent(offset, len).clamp_to(self.len());
        let mut buf = vec![0; extent.len().to_usize().expect("a request")];
        self.0.read_at(extent.start(), &mut buf)?;
        reply(&buf);
        Ok(())
    }
    fn write(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        self.0.write_at(offset, data)
    }
    fn discard(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.0.punch(extent(offset, len))
    }
    fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> Result<()> {
        self.0.punch(extent(offset, len))
    }
    fn sync(&self) -> Result<()> {
        self.0.sync()
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn seek_data(&self, from: ByteOffset) -> Result<Option<ByteOffset>> {
        self.0.seek_data(from)
    }
    fn seek_hole(&self, from: ByteOffset) -> Result<ByteOffset> {
        self.0.seek_hole(from)
    }
    fn allocated(&self) -> Result<ByteLen> {
        self.0.allocated()
    }
}
