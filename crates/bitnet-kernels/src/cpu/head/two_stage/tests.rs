//! The two-stage head against the int8 head, on inputs that are usual and on inputs made to mislead it.

use bytes::Bytes;

use super::*;
use crate::backend::{Backend, Norm};
use crate::cpu::Matrix;
use crate::dense::DenseType;
use crate::head::HeadType;
use crate::logits::Others;

/// Nearly normally distributed numbers, the same for the same seed.
fn gaussian(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    move || (0..12).map(|_| uniform()).sum::<f32>() - 6.0
}

fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut next = gaussian(seed);
    (0..count).map(|_| next()).collect()
}

fn dense(cols: usize, values: &[f32]) -> DenseMatrix {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    DenseMatrix::new(values.len() / cols, cols, DenseType::F32, Bytes::from(bytes)).unwrap()
}

/// Weights `[rows, cols]` and inputs `[tokens, cols]`.
struct Case {
    name: &'static str,
    cols: usize,
    weights: Vec<f32>,
    inputs: Vec<f32>,
}

const ROWS: usize = 6007;

impl Case {
    fn random(name: &'static str, cols: usize) -> Self {
        Self { name, cols, weights: normal(1, ROWS * cols), inputs: normal(2, 4 * cols) }
    }

    fn with(mut self, change: impl FnOnce(&mut [f32], &mut [f32])) -> Self {
        change(&mut self.weights, &mut self.inputs);
        self
    }
}

/// What a trained head does: each input is near to some row.
fn aligned(cols: usize) -> Case {
    Case::random("inputs near a row", cols).with(|w, x| {
        for (t, x) in x.chunks_mut(cols).enumerate() {
            for (x, w) in x.iter_mut().zip(&w[(t * 1501 + 3) * cols..]) {
                *x = 0.2 * *x + 0.5 * w;
            }
        }
    })
}

/// One rotation is too little for these.
fn few_elements(cols: usize) -> Case {
    Case::random("rows and inputs of few elements", cols).with(|w, x| {
        for (row, w) in w.chunks_mut(cols).enumerate() {
            let keep = [row % cols, row * 7 % cols, 5];
            (0..cols).filter(|k| !keep.contains(k)).for_each(|k| w[k] = 0.0);
        }
        for (t, x) in x.chunks_mut(cols).enumerate() {
            (0..cols).filter(|k| k % (50 << t) != 5).for_each(|k| x[k] = 0.0);
        }
    })
}

fn cases() -> Vec<Case> {
    let cols = 320;
    let scale_rows = |w: &mut [f32], factor: &dyn Fn(usize) -> f32| {
        for (row, w) in w.chunks_mut(cols).enumerate() {
            w.iter_mut().for_each(|w| *w *= factor(row));
        }
    };
    vec![
        Case::random("random", cols),
        Case::random("columns that are no whole blocks", 77),
        Case::random("columns in one block", 256),
        aligned(cols),
        Case::random("rows that are equal, and nearly", cols).with(|w, _| {
            for row in 1..40 {
                w.copy_within(0..cols, row * 37 * cols);
            }
            for row in 1..200 {
                w.copy_within(0..cols, (3000 + row) * cols);
                w[(3000 + row) * cols + row] += 1e-3 * row as f32;
            }
        }),
        Case::random("inputs near equal rows", cols).with(|w, x| {
            for row in 1..60 {
                w.copy_within(0..cols, row * 41 * cols);
                w[row * 41 * cols + row] *= 1.01;
            }
            x[..cols].copy_from_slice(&w[..cols]);
            x[cols..2 * cols].copy_from_slice(&w[41 * cols..42 * cols]);
        }),
        Case::random("outlier columns of inputs", cols).with(|_, x| {
            for (k, x) in x.iter_mut().enumerate() {
                *x *= if k % cols % 20 == 7 { 30.0 } else { 1.0 };
            }
        }),
        Case::random("outlier columns of inputs and weights", cols).with(|w, x| {
            for (k, value) in w.iter_mut().enumerate().chain(x.iter_mut().enumerate()) {
                *value *= if k % cols == 100 || k % cols == 3 { 100.0 } else { 1.0 };
            }
        }),
        Case::random("lengths from tiny to huge", cols)
            .with(|w, _| scale_rows(w, &|row| 10_f32.powi((row % 13) as i32 - 9))),
        Case::random("one huge row", cols)
            .with(|w, _| scale_rows(w, &|row| if row == 4321 { 1e6 } else { 1.0 })),
        few_elements(cols),
        Case::random("rows of two values", cols).with(|w, x| {
            w.iter_mut().chain(x).for_each(|value| *value = value.signum());
        }),
        Case::random("one element", cols).with(|_, x| {
            for (t, x) in x.chunks_mut(cols).enumerate() {
                (0..cols).filter(|&k| k != 100 * t).for_each(|k| x[k] = 0.0);
            }
        }),
        Case::random("nothing but negative logits", cols).with(|w, x| {
            w.iter_mut().for_each(|w| *w = -w.abs());
            x.iter_mut().for_each(|x| *x = x.abs());
        }),
        Case::random("zeros", cols).with(|w, x| (w[..900 * cols].fill(0.0), x[..cols].fill(0.0)).0),
    ]
}

struct Heads {
    backend: CpuBackend,
    cols: usize,
    int8: super::super::CpuHead,
    two_stage: super::super::CpuHead,
}

impl Heads {
    fn new(case: &Case, isa: Isa, threads: usize) -> Self {
        let backend = CpuBackend::new(isa, threads).unwrap();
        let upload =
            |form| backend.upload_head(dense(case.cols, &case.weights), form, &|_| {}).unwrap();
        let (int8, two_stage) = (upload(HeadType::Int8), upload(HeadType::TwoStage));
        Self { backend, cols: case.cols, int8, two_stage }
    }

    fn two_stage(&self) -> &TwoStageHead {
        let super::super::CpuHead::TwoStage(head) = &self.two_stage else {
            panic!("that is its form")
        };
        head
    }

    /// Logits of both heads. Inputs are not normed: a weight as small as `eps` is large keeps their proportions only.
    fn logits(&self, inputs: &[f32], wanted: &[Wanted]) -> [Logits; 2] {
        let x = Matrix { cols: self.cols, data: inputs.to_vec() };
        let norm = Norm { weight: vec![1.0; self.cols], eps: 1e-5 };
        let rows: Vec<_> = wanted.iter().cloned().enumerate().collect();
        [&self.int8, &self.two_stage].map(|head| {
            let mut out = Logits::default();
            let mut scratch = self.backend.scratch();
            self.backend.logits(&mut scratch, &x, &rows, &norm, head, &mut out);
            out
        })
    }

    /// How many of the tokens were found.
    #[track_caller]
    fn check(&self, name: &str, inputs: &[f32], wanted: &[Wanted]) -> u64 {
        let before = self.two_stage().record().counts();
        let [all, some] = self.logits(inputs, wanted);
        let counts = self.two_stage().record().counts();
        assert_eq!(counts.misses, 0, "{name}");
        for (token, wanted) in wanted.iter().enumerate() {
            let (all, some) = (all.row(token).logits(), some.row(token));
            let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            match some {
                LogitRow::All(some) | LogitRow::Peaked { logits: some, .. } => {
                    assert_eq!(bits(some), bits(all), "{name}");
                }
                LogitRow::Some { ids, logits } => {
                    assert_eq!(ids, wanted.of(all), "{name}, token {token}, {wanted:?}");
                    let expected: Vec<f32> = ids.iter().map(|&id| all[id as usize]).collect();
                    assert_eq!(bits(logits), bits(&expected), "{name}");
                }
            }
        }
        counts.found - before.found
    }
}

fn some(others: Others) -> Wanted {
    Wanted::Some { always: Vec::new(), others }
}

fn kinds_of_wanted() -> Vec<Wanted> {
    let always = vec![0, 3, 77, 6006, 9000];
    vec![
        some(Others::Greatest(1)),
        some(Others::Greatest(2)),
        some(Others::Greatest(40)),
        some(Others::Within(0.0)),
        some(Others::Within(1.5)),
        Wanted::Some { always: always.clone(), others: Others::Greatest(1) },
        Wanted::Some { always, others: Others::Greatest(20) },
        some(Others::Greatest(100_000)),
        Wanted::All,
    ]
}

#[test]
fn logits_are_those_of_the_int8_head() {
    for case in cases() {
        let heads = Heads::new(&case, Isa::best(), 2);
        for wanted in kinds_of_wanted() {
            let tokens = case.inputs.len() / case.cols;
            heads.check(case.name, &case.inputs, &vec![wanted; tokens]);
        }
    }
}

#[test]
fn logits_do_not_depend_on_instructions_threads_or_batch() {
    let (case, wanted) = (aligned(320), kinds_of_wanted());
    let inputs = [&case.inputs[..], &normal(9, 5 * 320)].concat();
    for &isa in Isa::available() {
        for threads in [1, 3] {
            let heads = Heads::new(&case, isa, threads);
            heads.check(isa.name(), &inputs, &wanted);
            for (x, wanted) in inputs.chunks(320).zip(&wanted) {
                heads.check(isa.name(), x, std::slice::from_ref(wanted));
            }
        }
    }
}

#[test]
fn a_trained_heads_likeliest_tokens_are_found_by_few_rows() {
    let case = aligned(320);
    let heads = Heads::new(&case, Isa::best(), 1);
    assert_eq!(heads.check(case.name, &case.inputs, &vec![some(Others::Greatest(1)); 4]), 4);
    assert!(heads.two_stage().record().counts().rows < 4 * 100);
}

#[test]
fn an_input_that_is_no_number_or_too_large_is_left_to_the_whole_head() {
    let case = Case::random("random", 64);
    let heads = Heads::new(&case, Isa::best(), 1);
    let mut inputs = case.inputs.clone();
    inputs[64 + 7] = f32::NAN;
    let wanted = vec![some(Others::Greatest(1)); 4];
    let [all, two_stage] = heads.logits(&inputs, &wanted);
    assert!(matches!(two_stage.row(1), LogitRow::All(_)) && two_stage.row(1).logits()[0].is_nan());
    assert!(all.row(1).logits()[0].is_nan());
    assert!(matches!(two_stage.row(2), LogitRow::Some { .. }));
    let huge = Case::random("huge", 64).with(|w, _| w.iter_mut().for_each(|w| *w *= 1e37));
    let heads = Heads::new(&huge, Isa::best(), 1);
    assert_eq!(heads.check(huge.name, &huge.inputs, &wanted), 0);
}

#[test]
fn bounds_hold_and_are_near() {
    let few = |seed| {
        few_elements(320).with(|w, _| {
            w.iter_mut().zip(normal(seed, 6007 * 320)).for_each(|(w, x)| {
                if *w != 0.0 {
                    *w = x
                }
            })
        })
    };
    for case in cases().into_iter().chain((3..9).map(few)) {
        let heads = Heads::new(&case, Isa::best(), 1);
        let [all, _] = heads.logits(&case.inputs, &[const { Wanted::All }; 4]);
        let (backend, head) = (&heads.backend, heads.two_stage());
        let mut scratch = backend.scratch();
        let x = Matrix { cols: case.cols, data: case.inputs.clone() };
        let norm = Norm { weight: vec![1.0; case.cols], eps: 1e-5 };
        let rows = vec![(0, some(Others::Greatest(1))); 4];
        let rows: Vec<_> = rows.into_iter().enumerate().map(|(i, (_, w))| (i, w)).collect();
        backend.logits(&mut scratch, &x, &rows, &norm, &heads.two_stage, &mut Logits::default());
        let Scratch { tokens, bounds, .. } = &scratch.two_stage;
        let (mut worst, mut squares, mut count) = (0.0_f64, 0.0, 0);
        for (&token, bounds) in tokens.iter().zip(bounds.chunks(ROWS)) {
            let x = &case.inputs[token * case.cols..][..case.cols];
            let length = |v: &[f32]| v.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
            let normed = (case.cols as f64).sqrt();
            for (row, (bound, logit)) in bounds.iter().zip(all.row(token).logits()).enumerate() {
                let margin = f64::from(head.screen.margins()[row]) * normed;
                if margin > 0.0 && length(x) > 0.0 {
                    let sigmas = 6.0 * (1.0 - f64::from(bound - logit) / margin);
                    (worst, count) = (worst.max(sigmas.abs()), count + 1);
                    squares += sigmas * sigmas;
                }
            }
        }
        let deviation = (squares / f64::from(count.max(1))).sqrt();
        println!("{}: deviation {deviation:.3}, worst {worst:.2} of {count}", case.name);
        assert!(worst < 5.5, "{}: {worst} standard deviations", case.name);
    }
}

#[test]
fn an_audit_that_finds_a_miss_ends_all_searches() {
    let case = aligned(320);
    let backend = CpuBackend::new(Isa::best(), 1).unwrap();
    let weights = dense(320, &case.weights);
    let mut head = TwoStageHead::pack(&weights, Isa::best(), &backend.pool, &|_| {}).unwrap();
    let (_, part) = head.screen.parts();
    part.estimates[3] *= -1.0; // the first input is near this row
    let heads = Heads {
        int8: backend.upload_head(weights, HeadType::Int8, &|_| {}).unwrap(),
        two_stage: super::super::CpuHead::TwoStage(Box::new(head)),
        backend,
        cols: 320,
    };
    let wanted = [some(Others::Greatest(1))];
    for _ in 0..3 {
        let [all, some] = heads.logits(&case.inputs[..320], &wanted);
        assert_eq!(some.row(0).logits(), all.row(0).logits());
    }
    let counts = heads.two_stage().record().counts();
    assert_eq!((counts.found, counts.audits, counts.misses), (1, 1, 1));
}

#[test]
fn one_answer_in_a_thousand_is_audited() {
    let case = aligned(64);
    let heads = Heads::new(&case, Isa::best(), 1);
    for _ in 0..251 {
        heads.logits(&case.inputs, &vec![some(Others::Greatest(1)); 4]);
    }
    let counts = heads.two_stage().record().counts();
    assert_eq!((counts.found, counts.audits, counts.misses), (1004, 2, 0));
}

#[test]
fn packing_is_the_same_on_every_tier_and_thread_count_and_says_what_it_took() {
    let (rows, cols) = (9000, 36);
    let weights = dense(cols, &normal(5, rows * cols));
    let pack = |isa, threads| {
        let taken = std::sync::Mutex::new(vec![0; rows]);
        let head = TwoStageHead::pack(&weights, isa, &ThreadPool::new(threads).unwrap(), &|rows| {
            taken.lock().unwrap()[rows].iter_mut().for_each(|count| *count += 1);
        });
        assert_eq!(taken.into_inner().unwrap(), vec![1; rows]);
        head.unwrap()
    };
    let expected = pack(Isa::Scalar, 1);
    for &isa in Isa::available() {
        for threads in [1, 3] {
            assert!(pack(isa, threads).screen == expected.screen, "{isa}");
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_refused_with_its_row() {
    let mut values = normal(7, 6000 * 4);
    (values[5000 * 4 + 1], values[5900 * 4]) = (f32::NAN, f32::INFINITY);
    for threads in [1, 2] {
        let pool = ThreadPool::new(threads).unwrap();
        let found =
            TwoStageHead::pack(&dense(4, &values), Isa::best(), &pool, &|_| {}).unwrap_err();
        assert_eq!(found, InvalidHead::NotFinite { row: 5000 });
    }
}

#[test]
fn every_head_is_taken_again_as_it_was_stored() {
    for case in cases() {
        let heads = Heads::new(&case, Isa::best(), 2);
        let head = heads.two_stage();
        let [rows, screen] = head.stored().map(|(bytes, floats)| {
            let mut lines = Lines::zeroed(bytes.len() / 64);
            lines.bytes_mut().copy_from_slice(bytes);
            (lines, floats.into_owned())
        });
        let again = TwoStageHead::of_parts(ROWS, case.cols, [rows, screen]);
        let again = again.unwrap_or_else(|| panic!("{}", case.name));
        assert!(again.screen == head.screen && again.stored() == head.stored(), "{}", case.name);
    }
}

/// Half of the rows are equal: with an input like them, no bounds tell which of these are the greatest.
fn half_equal(cols: usize) -> Case {
    Case::random("half of the rows are equal", cols).with(|w, x| {
        for row in ROWS / 2..ROWS {
            w.copy_within(0..cols, row * cols);
        }
        x[..cols].copy_from_slice(&w[..cols]);
        x[cols..2 * cols].copy_from_slice(&w[cols..2 * cols]);
    })
}

#[test]
fn where_bounds_never_settle_searches_become_rare_and_logits_stay_the_same() {
    let case = half_equal(320);
    let heads = Heads::new(&case, Isa::best(), 2);
    let (never, soon) = (&case.inputs[..320], &case.inputs[320..640]);
    let greedy = [some(Others::Greatest(1))];
    for _ in 0..200 {
        assert_eq!(heads.check(case.name, never, &greedy), 0);
    }
    let counts = heads.two_stage().record().counts();
    assert_eq!((counts.given_up, counts.found), (200, 0));
    assert!(counts.left_out > 150, "{counts:?}");
    // Another kind is not affected.
    let other = [some(Others::Greatest(5))];
    assert_eq!(heads.check(case.name, soon, &other), 1);
    // And this one is taken up again once it pays.
    let found: u64 = (0..600).map(|_| heads.check(case.name, soon, &greedy)).sum();
    assert!(found > 300, "{found}");
}
