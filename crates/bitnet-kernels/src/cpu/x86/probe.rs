//! Loops that do one thing as fast as the machine goes: read memory, multiply and add floats.

use std::arch::x86_64::*;
use std::hint::black_box;

use crate::cpu::isa::Isa;
use crate::cpu::probe::memory::{Line, Walk};

/// Lines of 64 bytes that a stream reads before the next one has its turn.
const STEP: usize = 8;

/// Reads all lines with vectors of `isa`, but for a remainder at the end of each stream. False if there is no loop for it.
pub fn read<L: Line>(isa: Isa, walk: Walk, lines: &[L]) -> bool {
    macro_rules! walks {
        ($loops:ident) => {
            // SAFETY: the variant of `Isa` that was matched proves the instructions.
            unsafe {
                match walk {
                    Walk::Plain => $loops::read::<L, 1, 0, 1>(lines),
                    Walk::Four => $loops::read::<L, 4, 0, 1>(lines),
                    Walk::FourPages => $loops::read::<L, 4, { 64 << 10 }, 64>(lines),
                    Walk::Lines => $loops::read::<L, 1, { 4 << 10 }, 1>(lines),
                }
            }
        };
    }
    match isa {
        Isa::Scalar => return false,
        Isa::Sse41(_) => walks!(read128),
        Isa::Avx(_) | Isa::Avx2(_) | Isa::AvxVnni(_) => walks!(read256),
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => walks!(read512),
    }
    true
}

macro_rules! read_loops {
    ($module:ident, $features:literal, $vector:ty, $zero:ident, $load:ident, $xor:ident) => {
        mod $module {
            use super::*;

            /// Reads `STREAMS` parts of `lines` in turns. Asks for what lies `AHEAD` bytes ahead, once in each `EVERY` lines;
            /// 0: never.
            #[target_feature(enable = $features)]
            pub fn read<L: Line, const STREAMS: usize, const AHEAD: usize, const EVERY: usize>(
                lines: &[L],
            ) {
                const { assert!(size_of::<L>() == 64) };
                const PARTS: usize = 64 / size_of::<$vector>();
                let mut sums = [$zero(); 8];
                let steps = lines.len() / STREAMS / STEP;
                let mut streams = [&[][..]; STREAMS];
                for s in 0..STREAMS {
                    streams[s] = lines[s * steps * STEP..][..steps * STEP].as_chunks::<STEP>().0;
                }
                for step in 0..steps {
                    for stream in &streams {
                        let lines = &stream[step];
                        if AHEAD > 0 {
                            let wanted = step * STEP % EVERY == 0;
                            for line in lines.iter().step_by(EVERY).filter(|_| wanted) {
                                let ahead = std::ptr::from_ref(line).wrapping_byte_add(AHEAD);
                                _mm_prefetch::<_MM_HINT_T0>(ahead.cast()); // a hint: it never faults
                            }
                        }
                        for (i, line) in lines.iter().enumerate() {
                            let parts = std::ptr::from_ref(line).cast::<$vector>();
                            for part in 0..PARTS {
                                let sum = &mut sums[(i * PARTS + part) % 8];
                                // SAFETY: a line is 64 readable bytes, so this part is within it; the load needs no alignment.
                                *sum = $xor(*sum, unsafe { $load(parts.add(part)) });
                            }
                        }
                    }
                }
                black_box(sums);
            }
        }
    };
}

read_loops!(read128, "sse2", __m128i, _mm_setzero_si128, _mm_loadu_si128, _mm_xor_si128);
read_loops!(read256, "avx", __m256, zero256, load256, xor256);
read_loops!(
    read512,
    "avx512f",
    __m512i,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_xor_si512
);

/// AVX has no integers of 256 bits, but its floats move the same bytes.
#[target_feature(enable = "avx")]
#[inline]
fn zero256() -> __m256 {
    _mm256_setzero_ps()
}

/// # Safety
/// `at` is readable.
#[target_feature(enable = "avx")]
#[inline]
unsafe fn load256(at: *const __m256) -> __m256 {
    // SAFETY: as promised by the caller; the load needs no alignment.
    unsafe { _mm256_loadu_ps(at.cast()) }
}

#[target_feature(enable = "avx")]
#[inline]
fn xor256(a: __m256, b: __m256) -> __m256 {
    _mm256_xor_ps(a, b)
}

/// Multiplies and adds floats, and returns how many products that made; none for the scalar tier, which has no vectors of
/// its own.
pub fn spin_floats(isa: Isa, rounds: usize) -> Option<usize> {
    // SAFETY: the variant of `Isa` that was matched proves the instructions.
    unsafe {
        match isa {
            Isa::Scalar => None,
            Isa::Sse41(_) => Some(floats128(rounds)),
            Isa::Avx(_) | Isa::Avx2(_) | Isa::AvxVnni(_) => Some(floats256(rounds)),
            Isa::Avx512(_) | Isa::Avx512Vnni(_) => Some(floats512(rounds)),
        }
    }
}

/// Products that wait for each other: four or so cycles for each of the two instructions, both of which may start twice in a
/// cycle. Fewer would wait; more would not fit the sixteen registers of AVX.
const CHAINS: usize = 12;

macro_rules! spin_floats {
    ($name:ident, $features:literal, $splat:ident, $mul:ident, $add:ident, $lanes:literal) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize) -> usize {
            let (factor, term) = black_box((0.5, 1.0)); // sums go towards 2: no slow tiny numbers, no infinities
            let (factor, term) = ($splat(factor), $splat(term));
            let mut sums = [$splat(1.0); CHAINS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = $add($mul(*sum, factor), term);
                }
            }
            black_box(sums);
            rounds * CHAINS * $lanes
        }
    };
}

spin_floats!(floats128, "sse2", _mm_set1_ps, _mm_mul_ps, _mm_add_ps, 4);
spin_floats!(floats256, "avx", _mm256_set1_ps, _mm256_mul_ps, _mm256_add_ps, 8);
spin_floats!(floats512, "avx512f", _mm512_set1_ps, _mm512_mul_ps, _mm512_add_ps, 16);

/// Multiplies and adds bf16 numbers, and returns how many products that made; none if the CPU has no instruction for it.
pub fn spin_bf16(rounds: usize) -> Option<usize> {
    let found = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f");
    // SAFETY: just detected.
    found.then(|| unsafe { bf16(rounds) })
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16(rounds: usize) -> usize {
    let one = black_box(_mm512_set1_ps(1.0));
    let operand = _mm512_cvtne2ps_pbh(one, one);
    let mut sums = [one; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, operand, operand);
        }
    }
    black_box(sums);
    rounds * CHAINS * 32
}
