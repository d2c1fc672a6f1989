//! Kernels for 64-bit Arm, a file per tier.
