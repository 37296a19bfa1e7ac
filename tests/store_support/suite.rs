//! The contract of a store, as claims that can be checked of any.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]
#![allow(dead_code, reason = "each test file uses its own part")]

use wrapdisk::error::ErrorKind;
use wrapdisk::store::BackingStore;
use wrapdisk::units::{ByteLen, ByteOffset, Extent};

/// Every claim starts with a store of this many zeros: 4 MiB and a ragged end, a multiple of a device's 512.
pub(crate) const LEN: u64 = (4 << 20) + 512;

/// What `punch` does here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Punch {
    /// Zeros, and `allocated` falls.
    Frees,
    /// Zeros.
    Zeroes,
    /// `Unsupported`, and nothing changes.
    Refused,
}

pub(crate) struct Subject<'a> {
    /// A new store of [`LEN`] zeros.
    pub(crate) fresh: &'a dyn Fn() -> Box<dyn BackingStore>,
    pub(crate) punch: Punch,
    /// Holes are reported, not only tolerated.
    pub(crate) sees_holes: bool,
    /// The length can change.
    pub(crate) grows: bool,
}

pub(crate) type Claim = (&'static str, fn(&dyn BackingStore, &Subject<'_>));
pub(crate) const CLAIMS: &[Claim] = &[
    ("what was written is read back", what_was_written_is_read_back),
    ("nothing asked is nothing done", nothing_asked_is_nothing_done),
    ("new bytes are zeros", new_bytes_are_zeros),
    ("a write past the end grows a file and fails on a device", a_write_past_the_end),
    ("a read past the end fails", a_read_past_the_end_fails),
    ("a punch zeroes its extent and nothing else", a_punch_zeroes_its_extent_and_nothing_else),
    ("a punch frees space", a_punch_frees_space),
    ("seeking never skips data", seeking_never_skips_data),
    ("seeking at the end finds nothing", seeking_at_the_end_finds_nothing),
    ("threads on disjoint ranges do not meet", threads_on_disjoint_ranges_do_not_meet),
    ("random operations equal the model", random_operations_equal_the_model),
];

pub(crate) fn keeps_the_contract(subject: &Subject<'_>) {
    for (name, claim) in CLAIMS {
        eprintln!("claim: {name}");
        let store = (subject.fresh)();
        assert_eq!(store.len().unwrap().get(), LEN, "a fresh store is {LEN} long");
        claim(&*store, subject);
        store.sync().expect("sync");
    }
}

// ---- the claims

fn what_was_written_is_read_back(store: &dyn BackingStore, _: &Subject<'_>) {
    for (at, len, seed) in
        [(0, 1, 1), (511, 2, 2), (4095, 4098, 3), (1 << 20, 1 << 20, 4), (LEN - 513, 513, 5), (4096, 512, 6)]
    {
        let data = noise(seed, len);
        put(store, at, &data);
        assert_eq!(get(store, at, len), data, "{len} bytes at {at}");
    }
    assert_eq!(get(store, 0, 1), noise(1, 1), "the first write survived the later ones");
    assert_eq!(get(store, LEN - 513, 513), noise(5, 513));
    store.sync().unwrap();
    assert_eq!(get(store, 4608, 100), noise(3, 4098)[513..613], "a write covers its own bytes only");
    assert_eq!(store.len().unwrap().get(), LEN);
}

fn nothing_asked_is_nothing_done(store: &dyn BackingStore, _: &Subject<'_>) {
    for at in [0, 1, LEN, LEN + 4096] {
        store.write_at(offset(at), &[]).unwrap();
        store.read_at(offset(at), &mut []).unwrap();
        store.punch(extent(at, 0)).unwrap();
    }
    assert_eq!(store.len().unwrap().get(), LEN);
    assert!(get(store, 0, LEN).iter().all(|&b| b == 0));
}

fn new_bytes_are_zeros(store: &dyn BackingStore, subject: &Subject<'_>) {
    if !subject.grows {
        let refused = store.set_len(length(LEN / 2)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused:?}");
        return;
    }
    put(store, 0, &noise(1, LEN));
    store.set_len(length(5000)).unwrap();
    assert_eq!(store.len().unwrap().get(), 5000);
    store.set_len(length(3 * LEN)).unwrap();
    assert_eq!(store.len().unwrap().get(), 3 * LEN);
    assert_eq!(get(store, 0, 5000), noise(1, LEN)[..5000], "what was kept");
    assert!(get(store, 5000, 3 * LEN - 5000).iter().all(|&b| b == 0), "what was cut off came back");
}

fn a_write_past_the_end(store: &dyn BackingStore, subject: &Subject<'_>) {
    let (at, data) = (LEN + 10_000, noise(9, 3000));
    if subject.grows {
        put(store, at, &data);
        assert_eq!(store.len().unwrap().get(), at + 3000);
        assert_eq!(get(store, at, 3000), data);
        assert!(get(store, LEN, 10_000).iter().all(|&b| b == 0));
    } else {
        let refused = store.write_at(offset(at), &data).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused:?}");
        let across = store.write_at(offset(LEN - 100), &data).unwrap_err();
        assert_eq!(across.kind(), ErrorKind::NoSpace, "{across:?}");
        assert_eq!(store.len().unwrap().get(), LEN);
    }
}

fn a_read_past_the_end_fails(store: &dyn BackingStore, _: &Subject<'_>) {
    get(store, LEN - 1, 1);
    for (at, len) in [(LEN - 1, 2), (LEN, 1), (LEN + (1 << 30), 4096)] {
        let refused =
            store.read_at(offset(at), &mut vec![0; len]).expect_err("a read past the end must fail");
        assert_eq!(refused.kind(), ErrorKind::Io);
        assert!(refused.chain().contains("unexpected end"), "{}", refused.chain());
    }
}

fn a_punch_zeroes_its_extent_and_nothing_else(store: &dyn BackingStore, subject: &Subject<'_>) {
    let mut model = noise(1, LEN);
    put(store, 0, &model);
    store.sync().unwrap();
    for (at, len) in [
        (65536, 131_072),
        (1 << 20, 4096),
        ((2 << 20) + 100, 100),
        ((2 << 20) + 1000, 70_001),
        (3 << 20, 512),
        (LEN - 700, 5000),
        (LEN + 4096, 4096),
    ] {
        let result = store.punch(extent(at, len));
        if subject.punch == Punch::Refused {
            // Devices write the part of a block that a punch cannot free, and clamp what lies past the end to nothing.
            match result {
                Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e:?}"),
                Ok(()) => zero(&mut model, at, len),
            }
        } else {
            result.unwrap_or_else(|e| panic!("punch {len} at {at}: {e:?}"));
            zero(&mut model, at, len);
        }
        assert_eq!(store.len().unwrap().get(), LEN, "a punch keeps the length");
        same(&get(store, 0, LEN), &model, &format!("after the punch of {len} at {at}"));
    }
    if subject.punch == Punch::Refused {
        let refused = store.punch(extent(0, LEN)).expect_err("this store cannot punch");
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused:?}");
        same(&get(store, 0, LEN), &model, "after a punch that was refused");
    }
}

fn a_punch_frees_space(store: &dyn BackingStore, subject: &Subject<'_>) {
    put(store, 0, &noise(1, LEN));
    store.sync().unwrap();
    let before = store.allocated().unwrap().get();
    assert!(before >= LEN, "{before} bytes are allocated for {LEN}");
    if subject.punch == Punch::Frees {
        store.punch(extent(1 << 20, 2 << 20)).unwrap();
        store.sync().unwrap();
        let after = store.allocated().unwrap().get();
        assert!(before - after >= 2 << 20, "{before} allocated before the punch of 2 MiB, {after} after");
    }
}

fn seeking_never_skips_data(store: &dyn BackingStore, subject: &Subject<'_>) {
    for (at, len, seed) in [(1 << 20, 10, 1), ((2 << 20) + 77, 200_000, 2), (LEN - 1, 1, 3)] {
        put(store, at, &noise(seed, len));
    }
    if subject.punch != Punch::Refused {
        store.punch(extent((2 << 20) + 65_536, 65_536)).unwrap();
    }
    let content = get(store, 0, LEN);
    // Once from the page cache, once after it was written back.
    for when in ["dirty", "synced"] {
        let mut in_holes = 0;
        let mut at = 0;
        while let Some(data) = store.seek_data(offset(at)).unwrap() {
            let (data, hole) = (data.get(), store.seek_hole(data).unwrap().get());
            assert!(at <= data && data < hole && hole <= LEN, "{when}: data {data}..{hole}, asked from {at}");
            assert!(
                slice(&content, at, data).iter().all(|&b| b == 0),
                "{when}: data in the hole {at}..{data}"
            );
            in_holes += data - at;
            at = hole;
        }
        assert!(slice(&content, at, LEN).iter().all(|&b| b == 0), "{when}: data in the hole {at}..end");
        assert!(
            !subject.sees_holes || in_holes > 2 << 20,
            "{when}: only {in_holes} bytes of holes were found"
        );
        store.sync().unwrap();
    }
}

fn seeking_at_the_end_finds_nothing(store: &dyn BackingStore, _: &Subject<'_>) {
    put(store, LEN - 1, &[1]);
    assert_eq!(store.seek_data(offset(LEN - 1)).unwrap(), Some(offset(LEN - 1)));
    assert_eq!(store.seek_hole(offset(LEN - 1)).unwrap(), offset(LEN), "the end counts as a hole");
    for at in [LEN, LEN + 1, LEN + (1 << 40)] {
        assert_eq!(store.seek_data(offset(at)).unwrap(), None);
        assert_eq!(store.seek_hole(offset(at)).unwrap(), offset(at));
    }
}

/// Each thread owns every fourth stripe of 1000 bytes: neighbours share pages and blocks, but no byte.
fn threads_on_disjoint_ranges_do_not_meet(store: &dyn BackingStore, _: &Subject<'_>) {
    const STRIPE: u64 = 1000;
    const STRIPES: u64 = 400;
    let content = |i: u64| noise(i + 1, STRIPE);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for i in (thread..STRIPES).step_by(4) {
                    put(store, i * STRIPE, &content(i));
                    assert_eq!(
                        get(store, i * STRIPE, STRIPE),
                        content(i),
                        "stripe {i} right after its write"
                    );
                    if i % 100 == thread {
                        store.sync().unwrap();
                    }
                }
            });
        }
    });
    for i in 0..STRIPES {
        assert_eq!(get(store, i * STRIPE, STRIPE), content(i), "stripe {i} in the end");
    }
}

fn random_operations_equal_the_model(store: &dyn BackingStore, subject: &Subject<'_>) {
    for seed in 1..=3 {
        let mut dice = Dice(seed);
        let mut model = get(store, 0, store.len().unwrap().get());
        for step in 0..300 {
            let end = model.len() as u64;
            let at = dice.below(end);
            let most = if dice.below(8) == 0 { 200_000 } else { 9000 };
            let len = 1 + dice.below(most).min(end - at - 1);
            match dice.below(10) {
                0..4 => {
                    let data = noise(dice.next(), len);
                    put(store, at, &data);
                    model[index(at)..index(at + len)].copy_from_slice(&data);
                }
                4..7 => same(
                    &get(store, at, len),
                    slice(&model, at, at + len),
                    &format!("seed {seed} step {step}"),
                ),
                7 | 8 => match store.punch(extent(at, len)) {
                    Ok(()) => zero(&mut model, at, len),
                    Err(e) => assert_eq!((e.kind(), subject.punch), (ErrorKind::Unsupported, Punch::Refused)),
                },
                _ if subject.grows => {
                    let len = LEN / 2 + dice.below(LEN);
                    store.set_len(length(len)).unwrap();
                    model.resize(index(len), 0);
                }
                _ => store.sync().unwrap(),
            }
        }
        same(&get(store, 0, model.len() as u64), &model, &format!("seed {seed}, in the end"));
    }
}

// ---- words

pub(crate) fn offset(n: u64) -> ByteOffset {
    ByteOffset::new(n).unwrap()
}
pub(crate) fn length(n: u64) -> ByteLen {
    ByteLen::new(n).unwrap()
}
pub(crate) fn extent(at: u64, len: u64) -> Extent {
    Extent::from_raw(at, len).unwrap()
}
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap()
}
pub(crate) fn put(store: &dyn BackingStore, at: u64, data: &[u8]) {
    store.write_at(offset(at), data).unwrap();
}
pub(crate) fn get(store: &dyn BackingStore, at: u64, len: u64) -> Vec<u8> {
    let mut buf = vec![0xee; index(len)];
    store.read_at(offset(at), &mut buf).unwrap();
    buf
}
pub(crate) fn slice(bytes: &[u8], from: u64, to: u64) -> &[u8] {
    &bytes[index(from)..index(to)]
}
pub(crate) fn zero(bytes: &mut [u8], at: u64, len: u64) {
    let end = index(at + len).min(bytes.len());
    if index(at) < end {
        bytes[index(at)..end].fill(0);
    }
}
/// Says where two images differ first, instead of printing them.
pub(crate) fn same(found: &[u8], wanted: &[u8], when: &str) {
    assert_eq!(found.len(), wanted.len(), "{when}");
    let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{when}: the first byte that differs");
}

/// splitmix64: small, and the same on every run.
struct Dice(u64);
impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
/// Bytes that no file system can compress and no test can mistake for a hole.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let words = std::iter::repeat_with(|| (dice.next() | 0x0101_0101_0101_0101).to_le_bytes());
    words.flatten().take(index(len)).collect()
}
