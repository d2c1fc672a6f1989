//! A program that was compiled for instructions that this processor lacks says so, and does not die of an illegal one.
//!
//! `is_x86_feature_detected!` is no help: it takes for granted what the program was compiled for. So this asks the processor.

use std::io::{self, Write};

/// An instruction set, whether the program was compiled for it, and where CPUID tells: leaf, subleaf, register, bit.
type Needed = (&'static str, bool, (u32, u32, usize, u32));

#[cfg(target_arch = "x86_64")]
macro_rules! needed {
    ($($name:literal: $leaf:literal.$subleaf:literal[$register:literal] $bit:literal;)*) => {
        [$(($name, cfg!(target_feature = $name), ($leaf, $subleaf, $register, $bit))),*]
    };
}

/// What `-C target-cpu` and `-C target-feature` put into code that has no intrinsics.
#[cfg(target_arch = "x86_64")]
const NEEDED: &[Needed] = &needed! {
    "sse3": 1 . 0 [2] 0;
    "ssse3": 1 . 0 [2] 9;
    "fma": 1 . 0 [2] 12;
    "sse4.1": 1 . 0 [2] 19;
    "sse4.2": 1 . 0 [2] 20;
    "popcnt": 1 . 0 [2] 23;
    "avx": 1 . 0 [2] 28;
    "f16c": 1 . 0 [2] 29;
    "bmi1": 7 . 0 [1] 3;
    "avx2": 7 . 0 [1] 5;
    "bmi2": 7 . 0 [1] 8;
    "avx512f": 7 . 0 [1] 16;
    "avx512dq": 7 . 0 [1] 17;
    "avx512bw": 7 . 0 [1] 30;
    "avx512vl": 7 . 0 [1] 31;
    "avx512vbmi": 7 . 0 [2] 1;
    "avx512vnni": 7 . 0 [2] 11;
    "avxvnni": 7 . 1 [0] 4;
};

/// An instruction set that the program was compiled for and this processor lacks.
///
/// All code here is compiled for it as well. Plain loops over numbers, without iterators, formatting or copies of structures,
/// leave the compiler no reason to use it.
#[inline(never)]
pub fn missing() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return find(NEEDED, |leaf, subleaf, register| {
        if leaf > std::arch::x86_64::__cpuid(0).eax {
            return 0;
        }
        let found = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        match register {
            0 => found.eax,
            1 => found.ebx,
            _ => found.ecx,
        }
    });
    #[cfg(not(target_arch = "x86_64"))]
    return find(&[], |_, _, _| 0);
}

fn find(needed: &[Needed], cpuid: impl Fn(u32, u32, usize) -> u32) -> Option<&'static str> {
    let mut index = 0;
    while index < needed.len() {
        let (name, compiled, (leaf, subleaf, register, bit)) = &needed[index];
        if *compiled && cpuid(*leaf, *subleaf, *register) >> *bit & 1 == 0 {
            return Some(*name);
        }
        index += 1;
    }
    None
}

/// Says so.
#[cold]
#[inline(never)]
pub fn complain(missing: &str) {
    let parts = [
        "error: this program was compiled for ",
        missing,
        ", which this processor lacks\nhint: build it without -C target-cpu and -C target-feature: it finds the best kernels by \
         itself\n",
    ];
    let mut index = 0;
    while index < parts.len() {
        let _ = io::stderr().write_all(parts[index].as_bytes()); // there is nobody else to tell
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_and_not_there_is_found() {
        let needed: [Needed; 3] = [
            ("there", true, (1, 0, 2, 5)),
            ("not compiled in", false, (7, 0, 1, 6)),
            ("gone", true, (7, 0, 1, 5)),
        ];
        let cpuid = |leaf, _, register| if leaf == 1 && register == 2 { 1 << 5 } else { !(1 << 5) };
        assert_eq!(find(&needed, cpuid), Some("gone"));
        assert_eq!(find(&needed[..2], cpuid), None);
        assert_eq!(missing(), None, "this test runs");
    }
}
