//! The vector registers of a thread that goes on to wait keep what they held: round keys after a cipher, plaintext after a
//! copy. A core file has them, and nothing else would ever overwrite them (tests/guard_forgets_the_key.rs found them there).
//!
//! Must never see: memory. `unsafe` for the instructions that have no other name.

/// Clears the vector registers of the calling thread. Nothing on other architectures than x86-64 yet.
#[inline]
pub fn scrub_registers() {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the instructions.
            unsafe { x86::clear_upper_sixteen() };
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: the CPU has the instructions.
            unsafe { x86::clear_wide() };
        } else {
            x86::clear();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::_mm256_zeroall;

    /// One instruction for each register: `$of` makes its operands from the register's name.
    macro_rules! clear {
        ($of:ident: $($register:tt)*) => {
            // SAFETY: the compiler knows which registers are written; no memory, no stack, no flags.
            unsafe { asm!($($of!($register)),*, $(out($register) _),*, options(nomem, nostack, preserves_flags)) }
        };
    }

    macro_rules! vpxord {
        ($r:tt) => {
            concat!("vpxord ", $r, ", ", $r, ", ", $r)
        };
    }

    macro_rules! pxor {
        ($r:tt) => {
            concat!("pxor ", $r, ", ", $r)
        };
    }

    /// Those that VZEROALL does not reach.
    #[target_feature(enable = "avx512f")]
    pub(super) fn clear_upper_sixteen() {
        clear!(vpxord: "zmm16" "zmm17" "zmm18" "zmm19" "zmm20" "zmm21" "zmm22" "zmm23");
        clear!(vpxord: "zmm24" "zmm25" "zmm26" "zmm27" "zmm28" "zmm29" "zmm30" "zmm31");
    }

    /// The first sixteen, to their full width.
    #[target_feature(enable = "avx")]
    pub(super) fn clear_wide() {
        _mm256_zeroall();
    }

    /// On a CPU without AVX.
    pub(super) fn clear() {
        clear!(pxor: "xmm0" "xmm1" "xmm2" "xmm3" "xmm4" "xmm5" "xmm6" "xmm7");
        clear!(pxor: "xmm8" "xmm9" "xmm10" "xmm11" "xmm12" "xmm13" "xmm14" "xmm15");
    }
}
