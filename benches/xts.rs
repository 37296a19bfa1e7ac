//! How fast are the XTS engines? Against memcpy, a bare EVP loop and plain `xts-mode`.
//!
//! `cargo bench --bench xts` measures each with criterion; `cargo bench --bench xts -- --ratios` measures all of
//! them in turn, round by round, and prints medians and ratios as Markdown (the numbers to quote: what disturbs
//! the machine disturbs all of them alike).

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes::Aes256;
use aes::cipher::KeyInit;
use criterion::{BenchmarkId, Criterion, Throughput};
use wrapdisk::units::{Sector, SectorSize};
use wrapdisk::xts::{Engine, VolumeKey, XtsCipher};
use xts_mode::Xts128;

const RUNS: [usize; 3] = [4 << 10, 128 << 10, 1 << 20];
const SECTORS: [SectorSize; 2] = [SectorSize::B512, SectorSize::B4096];
const FIRST: u32 = 7;

/// Turns a run into another, in place. `true` encrypts.
type Work = dyn FnMut(bool, &mut [u8]);

struct Subject {
    name: &'static str,
    work: Box<Work>,
}

fn subjects(key: &VolumeKey, size: SectorSize) -> Vec<Subject> {
    let mut subjects = vec![memcpy()];
    #[cfg(feature = "aws-lc")]
    subjects.extend([evp::bare(key, size), product("aws-lc", key, size, Engine::AwsLc)]);
    #[cfg(target_arch = "x86_64")]
    if Engine::available().contains(&Engine::Vaes) {
        subjects.push(product("vaes", key, size, Engine::Vaes));
    }
    subjects.extend([product("portable", key, size, Engine::RustCrypto), plain_xts_mode(key, size)]);
    subjects
}

fn memcpy() -> Subject {
    let source = vec![0x5a; *RUNS.iter().max().expect("there are runs")];
    let work = move |_, run: &mut [u8]| run.copy_from_slice(&black_box(&source)[..run.len()]);
    Subject { name: "memcpy", work: Box::new(work) }
}

fn product(name: &'static str, key: &VolumeKey, size: SectorSize, engine: Engine) -> Subject {
    let cipher = XtsCipher::new(key, size, engine).expect("memory for a cipher");
    let work = move |encrypt, run: &mut [u8]| match encrypt {
        true => cipher.encrypt(Sector::from(FIRST), run),
        false => cipher.decrypt(Sector::from(FIRST), run),
    };
    Subject { name, work: Box::new(work) }
}

fn plain_xts_mode(key: &VolumeKey, size: SectorSize) -> Subject {
    let (data, tweak) = key.secret().expose().split_at(32);
    let half = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes");
    let xts = Xts128::new(half(data), half(tweak));
    let units = size.bytes() / 512;
    let work = move |encrypt, run: &mut [u8]| {
        let tweak = |n: u128| (n * u128::from(units)).to_le_bytes().into();
        match encrypt {
            true => xts.encrypt_area(run, size.len(), u128::from(FIRST), tweak),
            false => xts.decrypt_area(run, size.len(), u128::from(FIRST), tweak),
        }
    };
    Subject { name: "xts-mode", work: Box::new(work) }
}

/// What aws-lc itself does on one thread: no pool, no checks, no dispatch.
#[cfg(feature = "aws-lc")]
mod evp {
    use super::{FIRST, SectorSize, Subject, VolumeKey};
    use aws_lc_sys as ffi;
    use std::ptr;

    struct Context(*mut ffi::EVP_CIPHER_CTX);

    impl Context {
        fn new(key: &VolumeKey, encrypt: bool) -> Self {
            let key = key.secret().expose().as_ptr();
            // SAFETY: a fresh context, and a key of the 64 bytes that AES-256-XTS takes.
            unsafe {
                let ctx = ffi::EVP_CIPHER_CTX_new();
                let xts = ffi::EVP_aes_256_xts();
                let done =
                    ffi::EVP_CipherInit_ex(ctx, xts, ptr::null_mut(), key, ptr::null(), encrypt.into());
                assert_eq!(done, 1);
                Self(ctx)
            }
        }

        fn run(&self, size: SectorSize, run: &mut [u8]) {
            let (mut unit, mut done) = (u128::from(FIRST) * u128::from(size.bytes() / 512), 0);
            for sector in run.chunks_exact_mut(size.len()) {
                let (iv, at) = (unit.to_le_bytes(), sector.as_mut_ptr());
                let len = i32::try_from(sector.len()).expect("a sector is small");
                // SAFETY: the context is alive and used by this thread alone; EVP allows out == in.
                unsafe {
                    ffi::EVP_CipherInit_ex(
                        self.0,
                        ptr::null(),
                        ptr::null_mut(),
                        ptr::null(),
                        iv.as_ptr(),
                        -1,
                    );
                    ffi::EVP_CipherUpdate(self.0, at, &raw mut done, at, len);
                }
                unit += u128::from(size.bytes() / 512);
            }
        }
    }

    impl Drop for Context {
        fn drop(&mut self) {
            // SAFETY: made in `new`, freed once.
            unsafe { ffi::EVP_CIPHER_CTX_free(self.0) }
        }
    }

    pub(super) fn bare(key: &VolumeKey, size: SectorSize) -> Subject {
        let (encrypt, decrypt) = (Context::new(key, true), Context::new(key, false));
        let work =
            move |to: bool, run: &mut [u8]| if to { encrypt.run(size, run) } else { decrypt.run(size, run) };
        Subject { name: "bare EVP", work: Box::new(work) }
    }
}

fn one_by_one(criterion: &mut Criterion) {
    let key = VolumeKey::generate().expect("a generator");
    for size in SECTORS {
        for mut subject in subjects(&key, size) {
            let mut group = criterion.benchmark_group(format!("{}/{}", subject.name, size.bytes()));
            for run in RUNS {
                group.throughput(Throughput::Bytes(run as u64));
                for (verb, encrypt) in [("encrypt", true), ("decrypt", false)] {
                    let mut buffer = vec![0x5a; run];
                    group.bench_function(BenchmarkId::new(verb, run), |b| {
                        b.iter(|| (subject.work)(encrypt, black_box(&mut buffer)));
                    });
                }
            }
            group.finish();
        }
    }
}

/// Bytes per nanosecond (GB/s) within one slice of time.
#[expect(clippy::cast_precision_loss, reason = "a rate to three digits")]
fn rate(subject: &mut Subject, encrypt: bool, buffer: &mut [u8]) -> f64 {
    const SLICE: Duration = Duration::from_millis(40);
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < SLICE {
        for _ in 0..8 {
            (subject.work)(encrypt, black_box(&mut *buffer));
            bytes += buffer.len();
        }
    }
    bytes as f64 / start.elapsed().as_nanos() as f64
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn in_turn() {
    const ROUNDS: usize = 7;
    let key = VolumeKey::generate().expect("a generator");
    println!("Medians of {ROUNDS} interleaved rounds, one thread, encrypt / decrypt, GB/s.\n");
    for size in SECTORS {
        for run in RUNS {
            let mut subjects = subjects(&key, size);
            let mut rates = vec![[const { Vec::new() }; 2]; subjects.len()];
            let mut buffer = vec![0x5a; run];
            for _ in 0..ROUNDS {
                for (subject, rates) in subjects.iter_mut().zip(&mut rates) {
                    for (encrypt, rates) in [true, false].into_iter().zip(rates) {
                        rates.push(rate(subject, encrypt, &mut buffer));
                    }
                }
            }
            let medians: Vec<[f64; 2]> = rates.into_iter().map(|both| both.map(median)).collect();
            table(&format!("{} KiB, sectors of {}", run >> 10, size.bytes()), &subjects, &medians);
        }
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn table(title: &str, subjects: &[Subject], medians: &[[f64; 2]]) {
    let of = |name| subjects.iter().position(|s| s.name == name).map(|i| medians[i]);
    println!("| {title} | GB/s | x bare EVP | x xts-mode |\n|---|---|---|---|");
    for (subject, rates) in subjects.iter().zip(medians) {
        let ratio = |base| match of(base) {
            Some([e, d]) => format!("{:.2} / {:.2}", rates[0] / e, rates[1] / d),
            None => "-".to_owned(),
        };
        println!(
            "| {} | {:.2} / {:.2} | {} | {} |",
            subject.name,
            rates[0],
            rates[1],
            ratio("bare EVP"),
            ratio("xts-mode")
        );
    }
    println!();
}

fn main() {
    if std::env::args().any(|arg| arg == "--ratios") {
        return in_turn();
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .sample_size(20)
        .configure_from_args();
    one_by_one(&mut criterion);
    criterion.final_summary();
}
