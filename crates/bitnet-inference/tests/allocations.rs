//! A step that generates allocates nothing in the model and its kernels, on any compute thread; neither does the engine,
//! but for the channel that its tokens go out on, which takes a block for each 31 of them, and for the tokens under which a
//! full page is filed, once in 64 of them.

#![expect(unsafe_code, reason = "an allocator that counts is one that allocates")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_inference::engine::Event;
use bitnet_inference::{EngineConfig, GenerationConfig, Request, SamplingStrategy, Work, spawn};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::pool::ThreadPool;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_model::batch::{Batch, Outputs};
use bitnet_model::decoder::Model;
use bitnet_model::format::{Checkpoint, OpenOptions};
use bitnet_model::kv::KvCache;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Set on threads of the test itself and not of what it tests.
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if !LEFT_OUT.get() {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const STEPS: usize = 100;

/// What the engine may allocate when it has finished and waits for more.
const WAITING: usize = 10;

/// Rounds of [`STEPS`] in which all threads have made their memory.
const WARM_UPS: usize = 30;

fn load(name: &str, threads: usize, head: HeadType) -> Arc<Model<CpuBackend>> {
    let testdata = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata"));
    let checkpoint = Checkpoint::open(&testdata.join(name), &OpenOptions::default()).unwrap();
    let backend = CpuBackend::with_pool(Isa::best(), ThreadPool::new(threads).unwrap());
    Arc::new(Model::load(&checkpoint, Arc::new(backend), head, 1, &|_| {}).unwrap())
}

/// Generates with `sequences` sequences of 8 tokens for [`STEPS`] steps.
#[track_caller]
fn check(name: &str, threads: usize, head: HeadType, dtype: KvType, sequences: usize) {
    let model = load(name, threads, head);
    let pages = (8 + STEPS + 1).div_ceil(PAGE);
    let mut kv = KvCache::new(&**model.backend(), model.config(), dtype, sequences * pages);
    let (mut scratch, mut batch) = (model.scratch(), Batch::default());
    let pages_of = |sequence: usize| -> Vec<u32> {
        (0..pages).map(|page| (sequence * pages + page) as u32).collect()
    };
    let lists: Vec<Vec<u32>> = (0..sequences).map(pages_of).collect();
    for pages in &lists {
        batch.push(&[1, 2, 3, 4, 5, 6, 7, 8], 0, pages, Outputs::Last);
    }
    model.forward(&batch, &mut kv, &mut scratch);
    let mut step = |position: usize| {
        batch.clear();
        lists.iter().for_each(|pages| batch.push(&[9], position, pages, Outputs::Last));
        let logits = model.forward(&batch, &mut kv, &mut scratch);
        assert!(logits.whole().iter().all(|x| x.is_finite()));
    };
    // A thread's memory is made when it first gets a part of each kind, which may be late.
    let allocates_nothing = |_| {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (8..8 + STEPS).for_each(&mut step);
        ALLOCATIONS.load(Ordering::SeqCst) == before
    };
    let found = (0..WARM_UPS).any(allocates_nothing);
    assert!(found, "{name}, {threads} threads, {dtype}, {sequences} sequences");
}

/// One test, because allocations are counted of all threads.
#[test]
fn a_step_that_generates_allocates_nothing_but_blocks_of_its_channel() {
    check_model();
    check_engine();
}

fn check_model() {
    for threads in [1, 2] {
        for sequences in [1, 3, 12] {
            check("golden/bitnet-tiny", threads, HeadType::File, KvType::F32, sequences);
            check("golden/bitnet-tiny", threads, HeadType::Int8, KvType::F16, sequences);
            check("golden/llama158-tiny", threads, HeadType::Int8, KvType::Int8, sequences);
        }
    }
}

fn check_engine() {
    LEFT_OUT.set(true);
    let penalized = GenerationConfig {
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        ..Default::default()
    };
    let top_p = GenerationConfig {
        sampling_strategy: SamplingStrategy::TopP,
        temperature: 0.8,
        top_p: 0.9,
        ..Default::default()
    };
    let both = GenerationConfig {
        temperature: 0.8,
        top_p: 0.9,
        sampling_strategy: top_p.sampling_strategy,
        ..penalized.clone()
    };
    for config in [GenerationConfig::default(), top_p, penalized, both] {
        let engine = spawn(
            load("golden/bitnet-tiny", 1, HeadType::Int8),
            &EngineConfig { kv_dtype: KvType::F16, ..EngineConfig::default() },
        );
        let work = Work::Generate {
            sampling: config.sampling().unwrap(),
            max_new_tokens: 20 + STEPS,
            stop_ids: Vec::new(),
        };
        let events = engine.unwrap().submit(Request::new(vec![376, 39, 68], work)).unwrap();
        let (mut tokens, mut at) = (0, Vec::new());
        while let Ok(event) = events.recv_blocking() {
            if let Event::Token { .. } = event {
                tokens += 1;
                at.push(ALLOCATIONS.load(Ordering::SeqCst));
            }
        }
        assert_eq!(tokens, 20 + STEPS);
        // Counted from when the twentieth token was read to when the last one was. The engine may be ahead, by its end at most,
        // and then it takes some memory to wait; whatever is allocated in every step is a hundred times or more.
        let allocated = at[at.len() - 1] - at[19];
        assert!(allocated <= STEPS.div_ceil(31) + WAITING, "{config:?}: {allocated}");
    }
}
