//! Units of the house: byte offsets, byte lengths, sector numbers and extents never mix as bare integers.
//!
//! Must never see: anything else of the crate.
//!
//! Invariant: every value is at most 2^63 - 1 (`i64::MAX`, the kernel's `loff_t`), so that sums of two fit a
//! `u64` and casts to `i64` are lossless. Construction checks it; arithmetic is checked.

use std::fmt;

/// The largest offset or length anywhere: `loff_t` is signed.
pub const MAX_BYTES: u64 = i64::MAX as u64;

/// A position in bytes from the start of something (a file, a segment, a disk).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(u64);

/// The index of an XTS data unit, counted from the start of the encrypted segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(u64);

macro_rules! bounded {
    ($t:ident) => {
        impl $t {
            /// Zero.
            pub const ZERO: Self = Self(0);

            /// `None` when `n` is above [`MAX_BYTES`].
            #[must_use]
            pub const fn new(n: u64) -> Option<Self> {
                if n <= MAX_BYTES { Some(Self(n)) } else { None }
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl From<u32> for $t {
            fn from(n: u32) -> Self {
                Self(u64::from(n))
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
bounded!(ByteOffset);
bounded!(ByteLen);
bounded!(Sector);

impl ByteOffset {
    /// `self + len`, `None` past [`MAX_BYTES`].
    #[must_use]
    pub fn checked_add(self, len: ByteLen) -> Option<Self> {
        Self::new(self.0.checked_add(len.0)?)
    }

    /// The distance from `earlier` to `self`; zero when `self` comes first.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> ByteLen {
        ByteLen(self.0.saturating_sub(earlier.0))
    }
}

impl ByteLen {
    /// The length of something in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        // A slice never exceeds isize::MAX bytes, so this conversion cannot lose anything.
        Self(bytes.len() as u64)
    }

    /// As an index into memory; `None` where `usize` is too narrow.
    #[must_use]
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// Rounded up to a multiple of `unit` bytes; `None` past [`MAX_BYTES`].
    #[must_use]
    pub fn round_up(self, unit: u64) -> Option<Self> {
        Self::new(self.0.checked_next_multiple_of(unit)?)
    }

    /// True when there is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// The size of an XTS data unit. LUKS2 knows 512, 1024, 2048 and 4096; we open the two that are in use and create 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SectorSize {
    /// 512 bytes: accepted when opening a container made elsewhere.
    B512,
    /// 4096 bytes: what we create.
    B4096,
}

impl SectorSize {
    /// Bytes in one sector.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// Bytes in one sector, as an index into memory.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    /// `None` for every size we do not support.
    #[must_use]
    pub const fn from_bytes(n: u64) -> Option<Self> {
        match n {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// The sector that holds the byte at `offset`.
    #[must_use]
    pub const fn sector_of(self, offset: ByteOffset) -> Sector {
        Sector(offset.0 / self.bytes())
    }
}

/// A run of bytes; may be empty. Its end is at most [`MAX_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    start: ByteOffset,
    len: ByteLen,
}

impl Extent {
    /// `None` when the end would pass [`MAX_BYTES`].
    #[must_use]
    pub fn new(start: ByteOffset, len: ByteLen) -> Option<Self> {
        start.checked_add(len)?;
        Some(Self { start, len })
    }

    /// From bare numbers, for values from a header or the kernel.
    #[must_use]
    pub fn from_raw(start: u64, len: u64) -> Option<Self> {
        Self::new(ByteOffset::new(start)?, ByteLen::new(len)?)
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> ByteOffset {
        self.start
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(self) -> ByteLen {
        self.len
    }

    /// The byte after the last one.
    #[must_use]
    pub const fn end(self) -> ByteOffset {
        ByteOffset(self.start.0 + self.len.0)
    }

    /// True when it covers no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// True when both share at least one byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// True when every byte of `other` is also here (an empty `other` always is).
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.is_empty() || (self.start.0 <= other.start.0 && other.end().0 <= self.end().0)
    }

    /// The part that lies before `limit`.
    #[must_use]
    pub fn clamp_to(self, limit: ByteLen) -> Self {
        let len = limit.0.saturating_sub(self.start.0).min(self.len.0);
        Self { start: self.start, len: ByteLen(len) }
    }

    /// Grown to whole units at both ends; `None` past [`MAX_BYTES`].
    #[must_use]
    pub fn outer(self, unit: u64) -> Option<Self> {
        let start = self.start.0 / unit * unit;
        let end = self.end().0.checked_next_multiple_of(unit)?;
        Self::from_raw(start, end - start)
    }

    /// Shrunk to the whole units inside; empty when there is none.
    #[must_use]
    pub fn inner(self, unit: u64) -> Self {
        let end = self.end().0 / unit * unit;
        let start = match self.start.0.checked_next_multiple_of(unit) {
            Some(start) if start <= end => start,
            _ => return Self { start: self.start, len: ByteLen::ZERO },
        };
        Self { start: ByteOffset(start), len: ByteLen(end - start) }
    }

    /// Cut into pieces whose ends are multiples of `unit` (except at the two ends of `self`).
    pub fn chunks(self, unit: u64) -> impl Iterator<Item = Self> {
        let end = self.end().0;
        let mut at = self.start.0;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = (at / unit + 1).saturating_mul(unit).min(end);
            let chunk = Self { start: ByteOffset(at), len: ByteLen(next - at) };
            at = next;
            Some(chunk)
        })
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_passes_the_kernels_offset() {
        assert!(ByteOffset::new(MAX_BYTES).is_some());
        assert!(ByteOffset::new(MAX_BYTES + 1).is_none());
        assert!(Extent::from_raw(MAX_BYTES, 1).is_none());
        assert!(Extent::from_raw(MAX_BYTES - 1, 1).is_some());
        assert!(ByteLen::new(MAX_BYTES).and_then(|l| l.round_up(4096)).is_none());
    }

    proptest! {
        #[test]
        fn inner_and_outer_bracket_the_extent(start in 0u64..1 << 40, len in 0u64..1 << 30, shift in 9u32..17) {
            let unit = 1u64 << shift;
            let e = Extent::from_raw(start, len).unwrap();
            let (inner, outer) = (e.inner(unit), e.outer(unit).unwrap());
            prop_assert!(outer.contains(e) && e.contains(inner));
            prop_assert_eq!(outer.start().get() % unit + outer.end().get() % unit, 0);
            prop_assert!(inner.is_empty() || inner.start().get() % unit + inner.end().get() % unit == 0);
            prop_assert!(outer.len().get() - inner.len().get() < 2 * unit + unit);
        }

        #[test]
        fn chunks_cover_the_extent_once_and_in_order(start in 0u64..1 << 20, len in 0u64..1 << 20, shift in 9u32..17) {
            let e = Extent::from_raw(start, len).unwrap();
            let mut at = start;
            for c in e.chunks(1 << shift) {
                prop_assert_eq!(c.start().get(), at);
                prop_assert!(!c.is_empty() && c.len().get() <= 1 << shift);
                at = c.end().get();
            }
            prop_assert_eq!(at, start + len);
        }

        #[test]
        fn clamp_never_wraps(start in 0u64..MAX_BYTES / 2, len in 0u64..MAX_BYTES / 2, limit in 0u64..MAX_BYTES) {
            let c = Extent::from_raw(start, len).unwrap().clamp_to(ByteLen::new(limit).unwrap());
            prop_assert!(c.is_empty() || c.end().get() <= limit);
            prop_assert!(c.len().get() <= len);
        }
    }
}
