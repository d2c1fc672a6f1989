//! An engine on a thread of its own, and the way to it from all others.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bitnet_kernels::backend::Backend;
use bitnet_kernels::profile::Profile;
use bitnet_model::decoder::Model;

use crate::config::{EngineConfig, Limits};
use crate::engine::{Engine, Event};
use crate::error::{EngineError, InvalidConfig};
use crate::request::{Request, Work};
use crate::stats::{Counters, EngineStats, Observer};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::channel::{self, Receiver, Sender};
use crate::sync::{mpsc, thread};

/// Submits requests to an engine. Clones share it; when the last is gone, the engine finishes what it has begun and ends.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    orders: Sender<Order>,
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
    limits: Limits,
    vocab_size: usize,
    profile: Arc<Profile>,
    kv_memory: Arc<[Range<usize>]>,
}

/// What an engine is told.
enum Order {
    /// To answer a request.
    Work(Box<Job>),
    /// To compute as many steps as it receives here, and to tell when they are done, until there can be no more.
    Stepwise(mpsc::Receiver<usize>, mpsc::Sender<()>),
    /// To give memory back that it does not need, and to tell when that is done.
    GiveBack(mpsc::Sender<()>),
}

/// An engine that computes the steps that it is told to and no others, until this is dropped. See [`EngineHandle::stepwise`].
#[derive(Debug)]
pub struct Stepwise {
    steps: mpsc::Sender<usize>,
    done: mpsc::Receiver<()>,
}

impl Stepwise {
    /// Computes so many steps of everything that was submitted. Returns when they are done; those that have nothing to do take
    /// no time.
    ///
    /// # Errors
    /// If the engine has ended.
    pub fn run(&self, steps: usize) -> Result<(), EngineError> {
        self.steps.send(steps).map_err(|_| EngineError::Stopped)?;
        self.done.recv().map_err(|_| EngineError::Stopped)
    }
}

/// Memory that an engine is giving back. See [`EngineHandle::give_back`].
#[derive(Debug)]
pub struct GivingBack(mpsc::Receiver<()>);

impl GivingBack {
    /// Waits until that is done.
    pub fn wait(self) {
        let _ = self.0.recv(); // or the engine has ended
    }
}

/// A request, where its results go, and its place among those that wait.
pub(crate) struct Job {
    pub request: Request,
    pub events: Sender<Event>,
    pub permit: Permit,
    pub submitted: Instant,
}

/// What waits.
#[derive(Debug, Default)]
struct Waiting {
    requests: AtomicUsize,
    tokens: AtomicUsize,
}

/// A place among the requests that wait, and room for tokens; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    waiting: Arc<Waiting>,
    tokens: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.waiting.requests.fetch_sub(1, Ordering::Relaxed);
        self.waiting.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// Starts an engine on a thread named `bitnet-engine`, which is where the backend wants it before this returns.
///
/// # Errors
/// If the limits do not suit the model, or the system refuses the thread or its place.
pub fn spawn<B: Backend>(
    model: Arc<Model<B>>,
    config: &EngineConfig,
) -> Result<EngineHandle, EngineError> {
    spawn_observed(model, config, Arc::new(()))
}

/// [`spawn`], with somebody who is told what happens.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_observed<B: Backend>(
    model: Arc<Model<B>>,
    config: &EngineConfig,
    observer: Arc<dyn Observer>,
) -> Result<EngineHandle, EngineError> {
    let (vocab_size, profile) = (model.config().vocab_size, Arc::clone(model.backend().profile()));
    let engine = Engine::new(model, config, observer)?;
    let (limits, counters) = (engine.limits(), Arc::clone(engine.counters()));
    let kv_memory = engine.kv_memory().into();
    let (orders, queue) = channel::unbounded(); // bounded by the permits
    let refused = |error: std::io::Error| EngineError::Thread { message: error.to_string() };
    let (sender, attached) = mpsc::channel();
    let work = move || {
        let result = engine.attach();
        let in_place = result.is_ok();
        let _ = sender.send(result); // received below
        if in_place {
            run(engine, &queue);
        }
    };
    thread::Builder::new().name("bitnet-engine".into()).spawn(work).map_err(refused)?;
    attached.recv().map_err(|_| EngineError::Stopped)?.map_err(refused)?;
    let waiting = Arc::default();
    Ok(EngineHandle { orders, waiting, counters, limits, vocab_size, profile, kv_memory })
}

/// Takes orders and computes steps until nothing is left and nobody can bring more.
fn run<B: Backend>(mut engine: Engine<B>, queue: &Receiver<Order>) {
    loop {
        if engine.is_idle() {
            let Ok(order) = queue.recv_blocking() else { return };
            follow(&mut engine, order, queue);
        }
        while let Ok(order) = queue.try_recv() {
            follow(&mut engine, order, queue);
        }
        step(&mut engine);
    }
}

fn follow<B: Backend>(engine: &mut Engine<B>, order: Order, queue: &Receiver<Order>) {
    match order {
        Order::Work(job) => engine.add(*job),
        Order::GiveBack(done) => {
            engine.give_back();
            let _ = done.send(()); // nobody may wait
        }
        Order::Stepwise(orders, done) => {
            while let Ok(steps) = orders.recv() {
                for _ in 0..steps {
                    while let Ok(order) = queue.try_recv() {
                        follow(engine, order, queue);
                    }
                    step(engine);
                }
                let _ = done.send(()); // whoever asked may be gone
            }
        }
    }
}

fn step<B: Backend>(engine: &mut Engine<B>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| engine.step())) {
        engine.recover(&message(&*panic)); // replaces all that the step was changing
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
        .to_owned()
}

impl EngineHandle {
    /// What requests are checked against.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What takes the time of its steps, when asked to.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Requests that wait for their first step.
    pub fn waiting(&self) -> usize {
        self.waiting.requests.load(Ordering::Relaxed)
    }

    /// What the engine does, and has done.
    pub fn stats(&self) -> EngineStats {
        let Waiting { requests, tokens } = &*self.waiting;
        EngineStats {
            waiting: requests.load(Ordering::Relaxed),
            waiting_tokens: tokens.load(Ordering::Relaxed),
            ..self.counters.read()
        }
    }

    /// The addresses of its key-value cache in this process's memory, which the system gives when they are first written.
    pub fn kv_memory(&self) -> &[Range<usize>] {
        &self.kv_memory
    }

    /// Has the engine give memory back to the system that no request needs at the moment: pages that are kept for requests to
    /// come, and working memory. Returns at once, with something that waits until it is done, after the step under way.
    pub fn give_back(&self) -> GivingBack {
        let (sender, done) = mpsc::channel();
        let _ = self.orders.try_send(Order::GiveBack(sender)); // an engine that has ended has nothing
        GivingBack(done)
    }

    /// Sends a request to the engine. Dropping the receiver cancels it.
    ///
    /// # Errors
    /// If the request does not fit the model, or too many wait already; nothing is ever put off.
    pub fn submit(&self, request: Request) -> Result<Receiver<Event>, EngineError> {
        self.check(&request)?;
        let permit = self.permit(request.ids.len())?;
        let (events, receiver) = channel::unbounded(); // bounded by the context: an event for each token
        let job = Job { request, events, permit, submitted: Instant::now() };
        self.orders.try_send(Order::Work(Box::new(job))).map_err(|_| EngineError::Stopped)?;
        Ok(receiver)
    }

    /// Has the engine stand still but for the steps that it is told to compute. Returns when it does; requests that are
    /// submitted meanwhile begin with the next such step, all together.
    ///
    /// For measurements that must know which steps they measure, with the processors their own in between.
    ///
    /// # Errors
    /// If the engine has ended.
    pub fn stepwise(&self) -> Result<Stepwise, EngineError> {
        let ((steps, orders), (sender, done)) = (mpsc::channel(), mpsc::channel());
        let order = Order::Stepwise(orders, sender);
        self.orders.try_send(order).map_err(|_| EngineError::Stopped)?;
        let stepwise = Stepwise { steps, done };
        stepwise.run(0)?;
        Ok(stepwise)
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let Request { ids, work, options } = request;
        options.check()?;
        let (tokens, context) = (ids.len(), self.limits.max_seq_len);
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens > context {
            return Err(EngineError::PromptTooLong { tokens, context });
        }
        if let Some(position) = ids.iter().position(|&id| id as usize >= self.vocab_size) {
            let (id, vocab_size) = (ids[position], self.vocab_size);
            return Err(EngineError::UnknownToken { id, position, vocab_size });
        }
        let rows = match *work {
            Work::Generate { .. } => return Ok(()),
            Work::Score { from } => (from, 1),
            Work::Logits { from } => (from, 0),
        };
        match rows {
            (from, first) if from >= first && from < tokens => Ok(()),
            (from, first) => {
                let expected = format!("at least {first} and below the number of tokens, {tokens}");
                Err(InvalidConfig::new("from", from, expected).into())
            }
        }
    }

    fn permit(&self, tokens: usize) -> Result<Permit, EngineError> {
        let Waiting { requests, tokens: all } = &*self.waiting;
        let Limits { max_waiting, max_waiting_tokens: limit, .. } = self.limits;
        let update = |count: &AtomicUsize, next: &dyn Fn(usize) -> Option<usize>| {
            count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        };
        let before = update(requests, &|n| (n < max_waiting).then_some(n + 1))
            .map_err(|waiting| EngineError::QueueFull { waiting })?;
        let added = update(all, &|n| (n == 0 || n + tokens <= limit).then_some(n + tokens));
        if let Err(found) = added {
            requests.fetch_sub(1, Ordering::Relaxed);
            return Err(EngineError::QueueTokens { waiting: before, tokens: found, limit });
        }
        Ok(Permit { waiting: Arc::clone(&self.waiting), tokens })
    }

    /// The logits after each of `ids` from index `from` on, `[ids.len() - from, vocab_size]`. Blocks.
    pub fn logits(&self, ids: Vec<u32>, from: usize) -> Result<Vec<f32>, EngineError> {
        collect_rows(&self.submit(Request::new(ids, Work::Logits { from }))?)
    }
}

/// Waits for all rows of a [`Work::Score`] or [`Work::Logits`].
pub fn collect_rows(events: &Receiver<Event>) -> Result<Vec<f32>, EngineError> {
    let mut all = Vec::new();
    loop {
        match events.recv_blocking() {
            Ok(Event::Rows(rows)) => all.extend(rows),
            Ok(Event::AllRows) => return Ok(all),
            Ok(Event::Failed(error)) => return Err(error),
            Ok(_) => {}
            Err(_) => return Err(EngineError::Stopped),
        }
    }
}
