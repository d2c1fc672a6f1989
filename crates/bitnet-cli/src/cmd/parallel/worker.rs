//! Those who answer: threads that wait for an engine they share, for one of their own, or for a process.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bitnet::{BitNetModel, EngineError, Error, GenerationConfig, InferenceConfig, RequestOptions};

use crate::args::ModelArgs;
use crate::console::Console;
use crate::failure::{BAD_INPUT, Failure};
use crate::interrupt::Watch;
use crate::load;
use crate::pieces::{self, Next};

use super::ParallelArgs;
use super::item::Item;
use super::strategy::Strategy;

/// What is to be answered, and how.
pub struct Job {
    pub prompts: Vec<String>,
    pub config: GenerationConfig,
    pub timeout: Option<Duration>,
}

/// One who answers a prompt at a time.
enum Worker {
    Engine(BitNetModel),
    Process(Process),
}

/// All who answer, ready.
pub struct Crew(Vec<Worker>);

impl Crew {
    /// Loads what the strategy needs.
    pub fn start(strategy: Strategy, args: &mut ParallelArgs, console: &Console) -> Result<Self> {
        let given = args.model.threads.threads;
        if let Strategy::Workers { threads, .. } = strategy {
            args.model.threads.threads = threads;
        }
        let crew = Self::load(strategy, args, console);
        args.model.threads.threads = given;
        crew
    }

    fn load(strategy: Strategy, args: &ParallelArgs, console: &Console) -> Result<Self> {
        let engine = |model: BitNetModel| Worker::Engine(model);
        Ok(Self(match strategy {
            Strategy::Workers { workers, threads } if args.processes => {
                super::compare::warn_if_too_many(workers * threads, console);
                let start = |_| Process::start(threads).map(Worker::Process);
                (0..workers).map(start).collect::<Result<_>>()?
            }
            Strategy::Workers { workers, threads } => {
                super::compare::warn_if_too_many(workers * threads, console);
                let first = load::load(&args.model, console)?.model;
                let one = || InferenceConfig { max_batch_size: 1, ..Default::default() };
                let others = (1..workers).map(|_| Ok(first.replica(threads, one())?));
                let others = others.collect::<Result<Vec<_>>>()?;
                [first].into_iter().chain(others).map(engine).collect()
            }
            Strategy::Sequential => vec![engine(load::load(&args.model, console)?.model)],
            Strategy::Batched => {
                let model = load::load(&args.model, console)?.model;
                vec![model; InferenceConfig::default().max_batch_size]
                    .into_iter()
                    .map(engine)
                    .collect()
            }
        }))
    }

    /// Answers the prompts, each by the first who is free. Results are in the order of the prompts; `done` is called after each.
    pub fn answer(&mut self, job: &Job, watch: &Watch, done: &(dyn Fn() + Sync)) -> Vec<Item> {
        let next = AtomicUsize::new(0);
        let items: Vec<_> = job.prompts.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for worker in self.0.iter_mut().take(job.prompts.len()) {
                let (next, items) = (&next, &items);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(prompt) = job.prompts.get(index) else { return };
                        if watch.pressed() {
                            return;
                        }
                        let item = worker.answer(prompt, job, watch);
                        *items[index].lock().expect("nobody panics with it") = Some(item);
                        done();
                    }
                });
            }
        });
        let taken = items.into_iter().map(|item| item.into_inner().expect("nobody panics with it"));
        let missing = |prompt: &String| Item::failed(prompt, "interrupted");
        taken.zip(&job.prompts).map(|(item, p)| item.unwrap_or_else(|| missing(p))).collect()
    }
}

impl Worker {
    fn answer(&mut self, prompt: &str, job: &Job, watch: &Watch) -> Item {
        let begin = Instant::now();
        match self {
            Self::Engine(model) => generate(model, prompt, job, watch, begin),
            Self::Process(process) => process.answer(prompt),
        }
    }
}

fn generate(
    model: &BitNetModel,
    prompt: &str,
    Job { config, timeout, .. }: &Job,
    watch: &Watch,
    begin: Instant,
) -> Item {
    let deadline = timeout.map(|timeout| begin + timeout);
    let options = RequestOptions { deadline, ..Default::default() };
    let stream = match model.generate_stream_with(prompt, config, options) {
        Ok(stream) => stream,
        Err(error) => return Item::failed(prompt, error),
    };
    let mut stream = Box::pin(stream);
    loop {
        match pieces::next(&mut stream, watch) {
            Ok(Next::Piece(_)) => {}
            Ok(Next::End) => break,
            Ok(Next::Interrupted) => return Item::failed(prompt, "interrupted"),
            Err(Error::Engine(EngineError::DeadlineExceeded)) => return Item::timed_out(prompt),
            Err(error) => return Item::failed(prompt, error),
        }
    }
    let output = stream.output().expect("without an error, the end has a reason");
    Item::answered(prompt, output, begin.elapsed().as_secs_f64())
}

/// This program once more, which answers prompts line by line.
pub struct Process {
    child: Child,
    prompts: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What a process says when it is ready.
const READY: &str = "ready";

impl Process {
    fn start(threads: usize) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let mut child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .args(["--child", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: cannot be started", program.display()))?;
        let prompts = child.stdin.take().expect("it is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        answers.read_line(&mut line).context("a process does not answer")?;
        if line.trim_end() != READY {
            let status = child.wait().context("a process does not end")?;
            let message = format!("a process ended before it was ready: {status}");
            return Err(match status.code() {
                Some(code) if code == i32::from(BAD_INPUT) => Failure::input(message).into(),
                _ => anyhow::Error::msg(message),
            });
        }
        Ok(Self { child, prompts, answers })
    }

    fn answer(&mut self, prompt: &str) -> Item {
        self.exchange(prompt).unwrap_or_else(|error| Item::failed(prompt, format!("{error:#}")))
    }

    fn exchange(&mut self, prompt: &str) -> Result<Item> {
        let ended = "the process that should answer has ended";
        writeln!(self.prompts, "{}", serde_json::to_string(prompt)?).context(ended)?;
        self.prompts.flush().context(ended)?;
        let mut line = String::new();
        anyhow::ensure!(self.answers.read_line(&mut line).context(ended)? > 0, ended);
        serde_json::from_str(&line).context("a process gave an answer that is none")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// The other side of [`Process`]: answers prompts from stdin, a line of JSON each, until there are no more.
pub fn serve(job: &Job, model: &ModelArgs, console: &Console) -> Result<()> {
    let model = load::load(model, console)?.model;
    let watch = Watch::start();
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let prompt: String = serde_json::from_str(&line?)
            .map_err(|error| Failure::input(format!("stdin: not a prompt in JSON: {error}")))?;
        let item = generate(&model, &prompt, job, &watch, Instant::now());
        writeln!(out, "{}", serde_json::to_string(&item)?)?;
        out.flush()?;
        if watch.pressed() {
            break;
        }
    }
    Ok(())
}
