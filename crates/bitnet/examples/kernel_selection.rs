//! Which kernels run here, and the timing that chose them:
//! `cargo run --release --example kernel_selection --no-default-features --features cpu`.
//!
//! Debug builds choose by the same timing, of slower code.

use bitnet::Isa;
use bitnet_kernels::cpu::selection::{TIMED_COLS, TIMED_ROWS};

fn main() {
    let selection = Isa::selection();
    println!("one token times {TIMED_ROWS} x {TIMED_COLS} ternary weights in cache:\n");
    for candidate in &selection.candidates {
        let time =
            candidate.nanoseconds.map_or_else(String::new, |ns| format!("{:.2} us", ns / 1e3));
        println!("{:<13} {time:>9}  {}", candidate.level.name(), candidate.verdict);
    }
    let level = selection.chosen.level();
    println!(
        "\n{:<34} {}, {} bits",
        "ternary products (all linear layers)",
        level,
        level.vector_bits()
    );
    for operation in ["norms and int8 quantization", "rotary embedding", "attention", "output head"]
    {
        println!("{operation:<36} {level}, the scalar definition compiled for it");
    }
}
