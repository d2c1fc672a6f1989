//! Holds what a two-stage head finds against all logits, on a text or on tokens without sense.
//!
//! `cargo run --release -p bitnet-model --example two_stage -- MODEL WINDOW WINDOWS [TEXT]`
//!
//! Computes windows of tokens twice, once with all logits and once with those wanted by some way to draw, for each position.
//! Prints how many positions differ (none may), how many were searched for, how many of these in vain, and how many rows that took.

use std::error::Error;
use std::sync::Arc;

use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_kernels::logits::{LogitRow, Logits, Others, Wanted};
use bitnet_model::batch::{Batch, Outputs};
use bitnet_model::decoder::Model;
use bitnet_model::format::{Checkpoint, OpenOptions};
use bitnet_model::kv::KvCache;
use bitnet_model::tokenizer::{Special, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, window, windows, text @ ..] = &args[..] else {
        return Err("see the source".into());
    };
    let (window, windows): (usize, usize) = (window.parse()?, windows.parse()?);
    let checkpoint = Checkpoint::open(model.as_ref(), &OpenOptions::default())?;
    let backend = Arc::new(CpuBackend::new(Isa::best(), 2)?);
    let model = Model::load(&checkpoint, backend, HeadType::TwoStage, 2, &|_| {})?;
    let vocab = model.config().vocab_size;
    let ids: Vec<u32> = match text.first() {
        Some(path) => {
            let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer_source())?;
            tokenizer.encode(&std::fs::read_to_string(path)?, Special::Text, false)?
        }
        None => (1..=window * windows).map(|i| ((i * 2_654_435_761) % vocab) as u32).collect(),
    };
    let record = model.head_record().expect("the head is two-stage");
    for others in [
        Others::Greatest(1),
        Others::Greatest(10),
        Others::Greatest(40),
        Others::Within(0.8 * 20_f64.ln()),
    ] {
        let (before, mut differ) = (record.counts(), 0);
        for ids in ids.chunks(window).take(windows) {
            let wanted = Wanted::Some { always: Vec::new(), others };
            let [all, some] = [Wanted::All, wanted.clone()].map(|w| logits(&model, ids, &w));
            differ += (0..ids.len()).filter(|&i| !same(&wanted, all.row(i), some.row(i))).count();
        }
        let counts = record.counts().since(before);
        let positions = counts.found + counts.given_up;
        let searches = positions - counts.left_out;
        println!(
            "{others:?}: {positions} positions, {differ} differ, {searches} searched for, {} of them given up, {:.1} rows of {vocab} computed",
            counts.given_up - counts.left_out,
            counts.rows as f64 / searches.max(1) as f64,
        );
    }
    Ok(())
}

fn logits(model: &Model<CpuBackend>, ids: &[u32], wanted: &Wanted) -> Logits {
    let pages: Vec<u32> = (0..ids.len().div_ceil(PAGE) as u32).collect();
    let mut kv = KvCache::new(&**model.backend(), model.config(), KvType::F32, pages.len());
    let mut batch = Batch::default();
    batch.push(ids, 0, &pages, Outputs::All);
    batch.outputs.iter_mut().for_each(|(_, wants)| *wants = wanted.clone());
    model.forward(&batch, &mut kv, &mut model.scratch()).clone()
}

/// Whether a row has what is wanted of all logits, and the same bits.
fn same(wanted: &Wanted, all: LogitRow<'_>, some: LogitRow<'_>) -> bool {
    wanted.of(all.logits()).into_iter().all(|id| {
        let bits = |row: LogitRow<'_>| row.place(id).map(|place| row.logits()[place].to_bits());
        bits(some) == bits(all)
    })
}
