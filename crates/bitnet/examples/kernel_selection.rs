//! Which kernels run here, and the timing that chose them:
//! `cargo run --release --example kernel_selection --no-default-features --features cpu`.
//!
//! Debug builds choose by the same timing, of slower code.

use bitnet::{Isa, KvType};
use bitnet_kernels::cpu::selection::{TIMED_COLS, TIMED_ROWS};

fn main() {
    let selection = Isa::selection();
    println!("one token times {TIMED_ROWS} x {TIMED_COLS} ternary weights in cache:\n");
    for candidate in &selection.candidates {
        let time =
            candidate.nanoseconds.map_or_else(String::new, |ns| format!("{:.2} us", ns / 1e3));
        println!("{:<13} {time:>9}  {}", candidate.level.name(), candidate.verdict);
    }
    let (isa, level) = (selection.chosen, selection.chosen.level());
    let row = |operation: &str, kernel: String| println!("{operation:<38} {kernel}");
    let (rows, tokens) = isa.tile();
    let tile = |rows, tokens| format!("tiles of {rows} rows x {tokens} tokens");
    println!("\nwith {level}, timed above:\n");
    row("ternary products (all linear layers)", tile(rows, tokens));
    println!("\nthe same level without a timing of their own:\n");
    let (rows, tokens) = isa.head_tile();
    row("output head in int8 (the default)", tile(rows, tokens));
    for dtype in KvType::ALL {
        row(&format!("attention, {dtype} cache"), isa.attention_kernel(dtype).to_string());
    }
    for operation in ["norms and int8 quantization", "rotary embedding", "softmax, gates and sums"]
    {
        row(operation, format!("the scalar definition compiled for {level}"));
    }
}
