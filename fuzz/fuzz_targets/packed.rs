//! A file of packed weights, opened in every way and computed with.
#![no_main]

#[path = "../checks/packed.rs"]
mod packed;

use std::sync::LazyLock;
use std::{env, fs, process};

use libfuzzer_sys::fuzz_target;

static CHECKER: LazyLock<packed::Checker> = LazyLock::new(|| {
    let folder = env::temp_dir().join(format!("bitnet-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("the system's folder for such things can be written to");
    packed::Checker::new(&folder)
});

fuzz_target!(|data: &[u8]| {
    CHECKER.run(data);
});
