//! The CPU backend's kernels.

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod aarch64;
pub mod isa;
pub mod level;
pub mod packed;
pub(crate) mod product;
pub mod selection;
mod selftest;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod x86;
