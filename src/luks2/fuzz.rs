//! What the fuzz target (fuzz/fuzz_targets/header.rs) and its replay on stable (tests/fuzz_corpus_replays.rs) run.
//!
//! It lives in the product tree because it builds headers from parts that are private here; no product code calls it, and
//! it is hidden from the documentation. The first byte of an input says what the rest is, so that an input is small and a
//! fuzzer need not find SHA-256 by chance.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::binary::{self, BINARY_SIZE, Binary, SIZES, Which};
use super::header::Header;
use crate::error::{Error, ErrorKind, Result};
use crate::store::BackingStore;
use crate::units::{ByteLen, ByteOffset, Extent};

/// Longer than any data segment that a header may ask for by chance.
const LONG: u64 = 1 << 40;
/// Bytes of a binary header that mean something.
const FIELDS: usize = 512;
/// Of one copy.
const SMALLEST: usize = 16384;

/// `t`: the rest is the text of a JSON area. `f`: 512 bytes of the primary's fields, 512 of the secondary's, and the text of
/// both. Anything else: the rest is a whole file, as it is. Returns whether it was accepted.
///
/// # Panics
/// When a header that was read cannot be written and read again as what it was: a bug.
pub fn fuzz_load(input: &[u8]) -> bool {
    let Some((mode, rest)) = input.split_first() else { return false };
    let store = match mode {
        b't' => of_text(rest),
        b'f' => of_fields(rest),
        _ => Sparse::new(rest.to_vec(), rest.len() as u64),
    };
    let Ok(mut header) = Header::load(&store) else { return false };
    let shown = header.dump_json();
    assert!(shown.is_ascii());
    assert!(header.keyslots().len() <= 32 && header.tokens().count() <= 8);
    assert!(header.area_len().get() <= store.len, "the header area is within the file");
    let seqid = header.seqid();
    match header.commit(&store) {
        // The last number there is.
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e:?}"),
        Ok(_) => {
            let again = Header::load(&store).expect("what was committed is read again");
            assert_eq!((again.seqid(), again.dump_json()), (seqid + 1, shown));
            assert_eq!(again.warnings(), [""; 0]);
        }
    }
    true
}

/// The text with a good binary header before it, of the size that is just large enough.
fn of_text(text: &[u8]) -> Sparse {
    let fits = |size: &u64| usize::try_from(*size).is_ok_and(|size| text.len() < size - BINARY_SIZE);
    let Some(hdr_size) = SIZES.into_iter().find(fits) else { return Sparse::new(Vec::new(), 0) };
    let binary = Binary {
        hdr_size,
        seqid: 1,
        label: String::new(),
        uuid: "6f2d1c84-9a3b-4e57-8c10-5d7e9b2a4f31".to_owned(),
        subsystem: String::new(),
    };
    Sparse::new(binary.build(Which::Primary, text).expect("it fits, and there is a random generator"), LONG)
}

/// The two copies around one text, each with a good checksum, wherever their fields say that they lie.
fn of_fields(rest: &[u8]) -> Sparse {
    let (primary, rest) = rest.split_at(rest.len().min(FIELDS));
    let (secondary, text) = rest.split_at(rest.len().min(FIELDS));
    let size = |fields: &[u8]| binary::size_of(fields).unwrap_or(SMALLEST);
    let (first, place) = (size(primary), size(secondary));
    let mut bytes = vec![0; first.max(2 * place)];
    let mut lay = |fields: &[u8], at: usize, size: usize| {
        let room = text.len().min(size - BINARY_SIZE);
        bytes[at..][..fields.len()].copy_from_slice(fields);
        bytes[at + BINARY_SIZE..][..room].copy_from_slice(&text[..room]);
    };
    lay(primary, 0, first);
    lay(secondary, place, place);
    // Of different sizes, the second lies in the first: so that one's checksum comes last.
    binary::put_checksum(&mut bytes[place..2 * place]);
    binary::put_checksum(&mut bytes[..first]);
    Sparse::new(bytes, LONG)
}

/// A long store that holds only its first bytes; zeros follow.
#[derive(Debug)]
struct Sparse {
    start: Mutex<Vec<u8>>,
    len: u64,
}

impl Sparse {
    fn new(start: Vec<u8>, len: u64) -> Self {
        Self { start: Mutex::new(start), len }
    }

    fn start(&self) -> MutexGuard<'_, Vec<u8>> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(offset: ByteOffset) -> usize {
    usize::try_from(offset.get()).expect("only headers are read here")
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Other, "a header needs no more of a store"))
}

impl BackingStore for Sparse {
    fn len(&self) -> Result<ByteLen> {
        Ok(ByteLen::new(self.len).expect("small"))
    }

    fn read_at(&self, offset: ByteOffset, buf: &mut [u8]) -> Result<()> {
        assert!(offset.get() + buf.len() as u64 <= self.len, "read past the end");
        let start = self.start();
        let there = start.get(index(offset)..).unwrap_or_default();
        let there = &there[..there.len().min(buf.len())];
        let (data, zeros) = buf.split_at_mut(there.len());
        data.copy_from_slice(there);
        zeros.fill(0);
        Ok(())
    }

    fn write_at(&self, offset: ByteOffset, data: &[u8]) -> Result<()> {
        let (mut start, at) = (self.start(), index(offset));
        let needed = start.len().max(at + data.len());
        start.resize(needed, 0);
        start[at..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, _: ByteLen) -> Result<()> {
        not_here()
    }

    fn punch(&self, _: Extent) -> Result<()> {
        not_here()
    }

    fn seek_data(&self, _: ByteOffset) -> Result<Option<ByteOffset>> {
        not_here()
    }

    fn seek_hole(&self, _: ByteOffset) -> Result<ByteOffset> {
        not_here()
    }

    fn allocated(&self) -> Result<ByteLen> {
        not_here()
    }
}
