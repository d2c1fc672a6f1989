//! The arithmetic of one transformer step on one device, and all the SIMD code there is.

#[cfg(not(feature = "cpu"))]
compile_error!("bitnet-kernels needs a backend: enable the feature `cpu`");

pub mod activation;
pub mod backend;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod dense;
pub mod device;
pub mod head;
pub mod kv;
pub mod logits;
pub mod memory;
pub mod profile;
pub mod scalar;
pub mod stored;
pub mod ternary;
