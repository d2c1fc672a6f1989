//! What this CPU can do: `cargo run --example check_cpu_features --no-default-features --features cpu`.

use bitnet::{CpuFeatures, SimdLevel};

fn main() {
    let cpu = CpuFeatures::detect();
    let x86 = [
        ("SSSE3", cpu.ssse3),
        ("SSE4.1", cpu.sse41),
        ("SSE4.2", cpu.sse42),
        ("AVX", cpu.avx),
        ("AVX2", cpu.avx2),
        ("FMA", cpu.fma),
        ("F16C", cpu.f16c),
        ("AVX-VNNI", cpu.avxvnni),
        ("AVX-512F", cpu.avx512f),
        ("AVX-512BW", cpu.avx512bw),
        ("AVX-512VL", cpu.avx512vl),
        ("AVX-512 VNNI", cpu.avx512vnni),
    ];
    let arm = [("NEON", cpu.neon), ("dot product", cpu.dotprod)];
    let features: &[(&str, bool)] = match cfg!(target_arch = "aarch64") {
        true => &arm,
        false => &x86,
    };
    for (name, has) in features {
        println!("{name:<13} {}", if *has { "yes" } else { "no" });
    }
    println!();
    for level in SimdLevel::of_this_architecture() {
        let missing = cpu.missing(level);
        match missing.is_empty() {
            true => println!("level {level:<12} can run"),
            false => println!("level {level:<12} cannot: {} missing", missing.join(", ")),
        }
    }
}
