//! Tiny models in every format against what transformers computes from them in float32 (`testdata/golden/README.md`).

use std::sync::Arc;

use bitnet_kernels::backend::Backend;
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::pool::ThreadPool;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_kernels::scalar::norm;
use bitnet_model::batch::{Batch, Outputs};
use bitnet_model::decoder::{Model, Point};
use bitnet_model::format::{Checkpoint, OpenOptions};
use bitnet_model::kv::KvCache;

use crate::reference::{Reference, testdata};

/// Absolute, on logits of standard deviation 5. Summation order alone gives 1.3e-5.
const TOLERANCE: f32 = 1e-4;

/// A model file and the folder with its numbers.
const MODELS: [(&str, &str); 5] = [
    ("bitnet-tiny", "bitnet-tiny"),
    ("bitnet-tiny-bf16", "bitnet-tiny-bf16"),
    ("llama158-tiny", "llama158-tiny"),
    ("gguf/bitnet-tiny-I2_S.gguf", "bitnet-tiny"),
    ("gguf/llama158-tiny-TQ1_0.gguf", "llama158-tiny"),
];

/// With the head as the file has it, as the reference computes it.
fn load(model: &str, isa: Isa, threads: usize) -> Model<CpuBackend> {
    load_with(model, HeadType::File, isa, threads)
}

fn load_with(model: &str, head: HeadType, isa: Isa, threads: usize) -> Model<CpuBackend> {
    let checkpoint =
        Checkpoint::open(&testdata("golden").join(model), &OpenOptions::default()).unwrap();
    let backend = Arc::new(CpuBackend::with_pool(isa, ThreadPool::new(threads).unwrap()));
    Model::load(&checkpoint, backend, head, threads, &|_| {}).unwrap()
}

/// The numbers of a model file; scales in TQ1_0 have passed through float16, which has numbers of its own but the same prompts.
fn reference(file: &str, folder: &str) -> Reference {
    let folder = testdata("golden").join(folder);
    let reference = Reference::open(&folder.join("golden.safetensors"));
    match file.contains("TQ1_0") {
        true => reference
            .with_outputs(Reference::open(&folder.join("golden-float16-scales.safetensors"))),
        false => reference,
    }
}

/// A sequence with a cache of its own, its pages deliberately out of order.
struct Run<'m> {
    model: &'m Model<CpuBackend>,
    kv: KvCache<CpuBackend>,
    len: usize,
}

impl<'m> Run<'m> {
    fn new(model: &'m Model<CpuBackend>) -> Self {
        Self::with(model, KvType::F32)
    }

    fn with(model: &'m Model<CpuBackend>, dtype: KvType) -> Self {
        Self { model, kv: KvCache::new(&**model.backend(), model.config(), dtype, 3), len: 0 }
    }

    fn feed(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut batch = Batch::default();
        batch.push(ids, self.len, &[2, 0, 1], Outputs::All);
        self.len += ids.len();
        assert!(self.len <= 3 * PAGE);
        self.model.forward(&batch, &mut self.kv, &mut self.model.scratch()).whole().to_vec()
    }
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

const PROMPTS: [&str; 3] = ["p0", "p1", "p2"];

#[test]
fn logits_and_greedy_continuations_are_the_references() {
    for (file, folder) in MODELS {
        let reference = reference(file, folder);
        for &isa in Isa::available() {
            for threads in [1, 2] {
                let model = load(file, isa, threads);
                for p in PROMPTS {
                    let what = format!("{file} {p} on {} with {threads} threads", isa.name());
                    check_prompt(&model, &reference, p, &what);
                }
            }
        }
    }
}

fn check_prompt(model: &Model<CpuBackend>, reference: &Reference, p: &str, what: &str) {
    let vocab = model.config().vocab_size;
    let mut run = Run::new(model);
    let logits = run.feed(&reference.ids(&format!("{p}.input_ids")));
    let expected = reference.floats(&format!("{p}.logits")); // of the last position only for one of them
    assert_close(&logits[logits.len() - expected.len()..], &expected, TOLERANCE, what);

    let expected = reference.ids(&format!("{p}.generated"));
    let mut last = logits[logits.len() - vocab..].to_vec();
    let mut generated = vec![best(&last)];
    while generated.len() < expected.len() {
        last = run.feed(&generated[generated.len() - 1..]);
        generated.push(best(&last));
    }
    assert_eq!(generated, expected, "{what}");
    if let Some(expected) = reference.find(&format!("{p}.generated_last_logits")) {
        // One int8 rounding on the way may go the other way and move these by up to 0.3.
        assert_close(&last, &expected, 0.5, what);
    }
}

/// Root mean square differences of logits of standard deviation 5 that each type of keys and values may make. A key that is
/// rounded lets some int8 activation after it round the other way, which moves logits more than the rounding itself. Observed
/// are at most 2e-6, 0.13, 0.17, 0.19 and 0.33.
const KV_TOLERANCES: [(KvType, f32); 5] = [
    (KvType::F32, 1e-4),
    (KvType::F16, 0.2),
    (KvType::Bf16, 0.25),
    (KvType::Int8, 0.28),
    (KvType::Fp8E4m3, 0.5),
];

#[test]
fn every_type_of_keys_and_values_stays_close_to_the_reference() {
    for (file, folder) in MODELS {
        let (reference, model) = (reference(file, folder), load(file, Isa::best(), 2));
        for (dtype, tolerance) in KV_TOLERANCES {
            for p in PROMPTS {
                let logits =
                    Run::with(&model, dtype).feed(&reference.ids(&format!("{p}.input_ids")));
                let expected = reference.floats(&format!("{p}.logits"));
                let found = &logits[logits.len() - expected.len()..];
                let squares = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b));
                let off = (squares.sum::<f32>() / expected.len() as f32).sqrt();
                assert!(off <= tolerance, "{file} {p} with {dtype}: off by {off}");
            }
        }
    }
}

#[test]
fn an_int8_head_has_the_references_greedy_continuations() {
    for (file, folder) in MODELS {
        let reference = reference(file, folder);
        let model = load_with(file, HeadType::Int8, Isa::best(), 2);
        let vocab = model.config().vocab_size;
        for p in PROMPTS {
            let mut run = Run::new(&model);
            let logits = run.feed(&reference.ids(&format!("{p}.input_ids")));
            let expected = reference.floats(&format!("{p}.logits"));
            // Logits have a standard deviation of 5; an int8 weight is off by up to 1/254 of the largest of its row.
            assert_close(&logits[logits.len() - expected.len()..], &expected, 0.2, file);
            let expected = reference.ids(&format!("{p}.generated"));
            let mut generated = vec![best(&logits[logits.len() - vocab..])];
            while generated.len() < expected.len() {
                generated.push(best(&run.feed(&generated[generated.len() - 1..])));
            }
            assert_eq!(generated, expected, "{file} {p}");
        }
    }
}

#[test]
fn a_prompt_split_anywhere_gives_the_same_bits() {
    for ((file, folder), head) in models_with_heads() {
        let ids = reference(file, folder).ids("p2.input_ids");
        let model = load_with(file, head, Isa::best(), 2);
        let whole = Run::new(&model).feed(&ids);
        for split in 1..ids.len() {
            let mut run = Run::new(&model);
            let parts = [run.feed(&ids[..split]), run.feed(&ids[split..])].concat();
            assert!(whole == parts, "{file}, head {head}, split after {split} tokens");
        }
        let mut run = Run::new(&model);
        let singly: Vec<f32> = ids.iter().flat_map(|id| run.feed(&[*id])).collect();
        assert!(whole == singly, "{file}, head {head}, token by token");
    }
}

#[test]
fn every_tier_and_thread_count_gives_the_same_bits() {
    for ((file, folder), head) in models_with_heads() {
        let ids = reference(file, folder).ids("p2.input_ids");
        let expected = Run::new(&load_with(file, head, Isa::Scalar, 1)).feed(&ids);
        for &isa in Isa::available() {
            for threads in 1..=3 {
                let found = Run::new(&load_with(file, head, isa, threads)).feed(&ids);
                let how = format!("on {} with {threads} threads", isa.name());
                assert!(found == expected, "{file}, head {head}, {how}");
            }
        }
    }
}

fn models_with_heads() -> impl Iterator<Item = ((&'static str, &'static str), HeadType)> {
    MODELS.into_iter().flat_map(|model| HeadType::ALL.map(|head| (model, head)))
}

/// The tiny model in one file, with a NaN in some row of a tensor.
fn with_nan(tensor: &str, row: usize) -> Checkpoint {
    let folder = testdata("golden/bitnet-tiny");
    let mut weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*weights.first_chunk().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&weights[8..header]).unwrap();
    let of = |key: &str, i: usize| json[tensor][key][i].as_u64().unwrap() as usize;
    let (start, end) = (of("data_offsets", 0), of("data_offsets", 1));
    let at = header + start + row * ((end - start) / of("shape", 0));
    weights[at..at + 4].fill(0xff);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let name = std::path::Path::new("tiny");
    Checkpoint::from_safetensors(name, &config, weights.into(), &OpenOptions::default()).unwrap()
}

#[test]
fn a_head_that_is_not_finite_is_refused_with_its_tensor_and_row() {
    let checkpoint = with_nan("model.embed_tokens.weight", 300);
    let backend = Arc::new(CpuBackend::new(Isa::best(), 2).unwrap());
    let error = Model::load(&checkpoint, backend, HeadType::Int8, 1, &|_| {}).err().unwrap();
    let place = "row 300, column 0 of tensor `model.embed_tokens.weight` is NaN";
    assert!(error.to_string().contains(place), "{error}");
}

#[test]
fn sequences_in_one_batch_do_not_see_each_other() {
    let reference = reference("bitnet-tiny", "bitnet-tiny");
    let model = load("bitnet-tiny", Isa::best(), 2);
    let (a, b) = (reference.ids("p1.input_ids"), reference.ids("p2.input_ids"));
    let mut batch = Batch::default();
    batch.push(&a, 0, &[1], Outputs::All);
    batch.push(&b, 0, &[0], Outputs::Last);
    let mut kv = KvCache::new(&**model.backend(), model.config(), KvType::F32, 2);
    let together = model.forward(&batch, &mut kv, &mut model.scratch()).whole().to_vec();
    let vocab = model.config().vocab_size;
    let (alone_a, alone_b) = (Run::new(&model).feed(&a), Run::new(&model).feed(&b));
    assert!(
        together[..a.len() * vocab] == alone_a
            && together[a.len() * vocab..] == alone_b[alone_b.len() - vocab..]
    );
}

#[test]
fn int8_inputs_and_hidden_states_are_the_references() {
    for (file, folder) in MODELS {
        let reference = reference(file, folder);
        let model = load(file, Isa::best(), 1);
        let checkpoint =
            Checkpoint::open(&testdata("golden").join(file), &OpenOptions::default()).unwrap();
        for p in PROMPTS {
            let layers = Layers { checkpoint: &checkpoint, reference: &reference, p, file };
            let mut batch = Batch::default();
            batch.push(&reference.ids(&format!("{p}.input_ids")), 0, &[0], Outputs::None);
            let mut kv = KvCache::new(&**model.backend(), model.config(), KvType::F32, 1);
            let backend = Arc::clone(model.backend());
            model.forward_observed(&batch, &mut kv, &mut model.scratch(), &mut |point, x| {
                layers.check(point, &backend.download(x));
            });
        }
    }
}

/// The reference's values inside the layers for one prompt.
struct Layers<'a> {
    checkpoint: &'a Checkpoint,
    reference: &'a Reference,
    p: &'a str,
    file: &'a str,
}

impl Layers<'_> {
    fn check(&self, point: Point, x: &[f32]) {
        let layers = self.checkpoint.config().num_hidden_layers;
        let sub_norms = self.checkpoint.config().sub_norms;
        if let Point::Hidden(layer) = point {
            self.check_hidden(&layer.to_string(), x);
            if layer == layers {
                self.check_hidden("norm", &self.normed("model.norm", x));
                return;
            }
        }
        let (layer, norm, linear) = match point {
            Point::Hidden(layer) => (layer, Some("input_layernorm"), "self_attn.q_proj"),
            Point::Attention(layer) => {
                (layer, sub_norms.then_some("self_attn.attn_sub_norm"), "self_attn.o_proj")
            }
            Point::PostAttention(layer) => {
                (layer, Some("post_attention_layernorm"), "mlp.gate_proj")
            }
            Point::Gated(layer) => {
                (layer, sub_norms.then_some("mlp.ffn_sub_norm"), "mlp.down_proj")
            }
        };
        self.check_input(layer, norm, linear, x);
    }

    fn check_hidden(&self, at: &str, x: &[f32]) {
        let name = format!("{}.h.{at}", self.p);
        if let Some(expected) = self.reference.find(&name) {
            assert_close(x, &expected, TOLERANCE, &format!("{} {name}", self.file));
        }
    }

    fn normed(&self, norm: &str, x: &[f32]) -> Vec<f32> {
        let config = self.checkpoint.config();
        let width = if norm.ends_with("ffn_sub_norm") {
            config.intermediate_size
        } else {
            config.hidden_size
        };
        let weight = self.checkpoint.vector(norm, width).unwrap();
        let mut y = x.to_vec();
        for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
            norm::rms_norm(x, &weight, config.rms_norm_eps, y);
        }
        y
    }

    fn check_input(&self, layer: usize, norm: Option<&str>, linear: &str, x: &[f32]) {
        let config = self.checkpoint.config();
        let tensor = format!("{}.model.layers.{layer}.{linear}", self.p);
        if !self.reference.has(&format!("{tensor}.in_q8")) {
            return;
        }
        let what = format!("{} {tensor}", self.file);
        let width =
            if linear == "mlp.down_proj" { config.intermediate_size } else { config.hidden_size };
        let (values, scales) = (
            self.reference.int8(&format!("{tensor}.in_q8")),
            self.reference.floats(&format!("{tensor}.in_scale")),
        );
        let normed =
            norm.map_or(x.to_vec(), |norm| self.normed(&format!("model.layers.{layer}.{norm}"), x));
        for ((x, expected), expected_scale) in
            normed.chunks(width).zip(values.chunks(width)).zip(scales)
        {
            let mut q = vec![0; width];
            let (scale, _) = norm::quantize(x, &mut q);
            assert!(q == expected, "{what}: int8 values differ");
            assert!(
                (scale - expected_scale).abs() <= 1e-6 * expected_scale,
                "{what}: scale {scale}, not {expected_scale}"
            );
        }
    }
}

#[test]
fn each_linear_fed_the_references_input_gives_its_output() {
    let reference = reference("bitnet-tiny", "bitnet-tiny");
    let checkpoint =
        Checkpoint::open(&testdata("golden/bitnet-tiny"), &OpenOptions::default()).unwrap();
    let (hidden, intermediate) =
        (checkpoint.config().hidden_size, checkpoint.config().intermediate_size);
    let linears = [
        ("self_attn.q_proj", "self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", "self_attn.q_proj", hidden / 2, hidden),
        ("self_attn.v_proj", "self_attn.q_proj", hidden / 2, hidden),
        ("self_attn.o_proj", "self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", "mlp.gate_proj", intermediate, hidden),
        ("mlp.up_proj", "mlp.gate_proj", intermediate, hidden),
        ("mlp.down_proj", "mlp.down_proj", hidden, intermediate),
    ];
    for (linear, input, rows, cols) in linears {
        let weights = checkpoint.ternary(&format!("model.layers.0.{linear}"), rows, cols).unwrap();
        let x = reference.floats(&format!("p1.model.layers.0.{input}.in"));
        let expected = reference.floats(&format!("p1.model.layers.0.{linear}.out"));
        for &isa in Isa::available() {
            let backend = CpuBackend::new(isa, 2).unwrap();
            let found = backend.linear(&backend.upload_ternary(weights.clone()), &x);
            assert_close(&found, &expected, TOLERANCE, &format!("{linear} on {}", isa.name()));
        }
    }
}
