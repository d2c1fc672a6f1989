//! Where the time of steps goes: by phase, and for each thread how much of it computing.
//!
//! Off, it costs a load and a branch for each operation. On, two looks at the clock for each operation and thread.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows of the embedding table.
    Embedding,
    /// Norms and quantization of inputs, where they are done before a product and not by each thread within it.
    Quantize,
    /// Queries, keys and values, their rotation and storage.
    Project,
    /// Attention.
    Attention,
    /// The product after attention.
    Output,
    /// Gate and up, and the function between them.
    Gated,
    /// The product after that.
    Down,
    /// Norm and the output head.
    Head,
    /// Drawing tokens.
    Sampling,
    /// Planning the step, telling what came of it, and all else.
    Rest,
}

impl Phase {
    /// All, in the order of a step.
    pub const ALL: [Self; 10] = [
        Self::Embedding,
        Self::Quantize,
        Self::Project,
        Self::Attention,
        Self::Output,
        Self::Gated,
        Self::Down,
        Self::Head,
        Self::Sampling,
        Self::Rest,
    ];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Quantize => "norm, int8",
            Self::Project => "q, k, v",
            Self::Attention => "attention",
            Self::Output => "attention output",
            Self::Gated => "gate, up",
            Self::Down => "down",
            Self::Head => "head",
            Self::Sampling => "sampling",
            Self::Rest => "rest",
        }
    }
}

const PHASES: usize = Phase::ALL.len();

/// Nanoseconds of each phase. On cache lines of its own, since every thread has one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Nanos([AtomicU64; PHASES]);

impl Nanos {
    fn add(&self, phase: usize, nanos: u64) {
        self.0[phase].fetch_add(nanos, Ordering::Relaxed);
    }

    fn duration(&self, phase: usize) -> Duration {
        Duration::from_nanos(self.0[phase].load(Ordering::Relaxed))
    }
}

/// Adds up the time of steps while it is on. It follows one engine at a time: phases of engines that share a device mix.
#[derive(Debug)]
pub struct Profile {
    /// Tokens of the steps that are to be measured; 0 for none.
    wanted: AtomicUsize,
    /// A step that is measured is under way.
    on: AtomicBool,
    /// The phase under way, and since when, in nanoseconds after `origin`.
    phase: AtomicUsize,
    since: AtomicU64,
    origin: Instant,
    steps: AtomicUsize,
    wall: Nanos,
    jobs: [AtomicUsize; PHASES],
    busy: Box<[Nanos]>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiled {
    /// Steps that were measured.
    pub steps: usize,
    /// Phases, in the order of [`Phase::ALL`]; together they are all the time of these steps.
    pub phases: Vec<PhaseReport>,
}

/// A phase in all steps that were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseReport {
    /// Which.
    pub phase: Phase,
    /// How long it took.
    pub time: Duration,
    /// Times that threads waited for each other at its end.
    pub barriers: usize,
    /// How long each thread computed in it; the rest it waited, or did what only one thread does.
    pub busy: Vec<Duration>,
}

impl Profiled {
    /// All the time of these steps.
    pub fn time(&self) -> Duration {
        self.phases.iter().map(|phase| phase.time).sum()
    }
}

impl Profile {
    /// For so many compute threads; off.
    pub fn new(threads: usize) -> Self {
        Self {
            wanted: AtomicUsize::new(0),
            on: AtomicBool::new(false),
            phase: AtomicUsize::new(0),
            since: AtomicU64::new(0),
            origin: Instant::now(),
            steps: AtomicUsize::new(0),
            wall: Nanos::default(),
            jobs: Default::default(),
            busy: (0..threads).map(|_| Nanos::default()).collect(),
        }
    }

    /// Measures steps of `tokens` tokens from the next one on, and forgets what was measured before.
    pub fn start(&self, tokens: usize) {
        self.stop();
        self.steps.store(0, Ordering::Relaxed);
        self.jobs.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        let nanos = self.busy.iter().chain([&self.wall]);
        nanos.flat_map(|nanos| &nanos.0).for_each(|time| time.store(0, Ordering::Relaxed));
        self.wanted.store(tokens, Ordering::Release);
    }

    /// Ends measuring, with the step that is under way, and says what was found.
    pub fn stop(&self) -> Profiled {
        self.wanted.store(0, Ordering::Relaxed);
        while self.on.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let phases = Phase::ALL.iter().enumerate().map(|(index, &phase)| PhaseReport {
            phase,
            time: self.wall.duration(index),
            barriers: self.jobs[index].load(Ordering::Relaxed),
            busy: self.busy.iter().map(|busy| busy.duration(index)).collect(),
        });
        Profiled { steps: self.steps.load(Ordering::Relaxed), phases: phases.collect() }
    }

    /// A step of `tokens` tokens lasts until what this returns is dropped.
    pub fn step(&self, tokens: usize) -> StepTime<'_> {
        let measured = tokens > 0 && tokens == self.wanted.load(Ordering::Acquire);
        if measured {
            self.phase.store(Phase::Rest as usize, Ordering::Relaxed);
            self.since.store(self.now(), Ordering::Relaxed);
        }
        self.on.store(measured, Ordering::Relaxed);
        StepTime(measured.then_some(self))
    }

    /// A phase of the step lasts until what this returns is dropped; the one that it interrupts goes on then. For the thread
    /// that makes the step.
    pub fn phase(&self, phase: Phase) -> PhaseTime<'_> {
        let on = self.on.load(Ordering::Relaxed);
        PhaseTime(on.then(|| (self, self.switch(phase as usize))))
    }

    /// Ends a phase, begins another, and returns the one that ended.
    fn switch(&self, phase: usize) -> usize {
        let now = self.now();
        let ended = self.phase.swap(phase, Ordering::Relaxed);
        self.wall.add(ended, now - self.since.swap(now, Ordering::Relaxed));
        ended
    }

    fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The time, if it is to be taken.
    pub(crate) fn begin(&self) -> Option<Instant> {
        self.on.load(Ordering::Relaxed).then(Instant::now)
    }

    /// `thread` has computed since `begin`.
    pub(crate) fn computed(&self, thread: usize, begin: Option<Instant>) {
        if let Some(begin) = begin {
            self.busy[thread]
                .add(self.phase.load(Ordering::Relaxed), begin.elapsed().as_nanos() as u64);
        }
    }

    /// Threads are about to wait for each other.
    pub(crate) fn barrier(&self) {
        if self.on.load(Ordering::Relaxed) {
            self.jobs[self.phase.load(Ordering::Relaxed)].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// See [`Profile::step`].
#[must_use]
pub struct StepTime<'a>(Option<&'a Profile>);

impl Drop for StepTime<'_> {
    fn drop(&mut self) {
        if let Some(profile) = self.0 {
            profile.switch(Phase::Rest as usize);
            profile.steps.fetch_add(1, Ordering::Relaxed);
            profile.on.store(false, Ordering::Release);
        }
    }
}

/// See [`Profile::phase`].
#[must_use]
pub struct PhaseTime<'a>(Option<(&'a Profile, usize)>);

impl Drop for PhaseTime<'_> {
    fn drop(&mut self) {
        if let Some((profile, interrupted)) = self.0 {
            profile.switch(interrupted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(2);

    fn sampled(profile: &Profile, tokens: usize) {
        let _step = profile.step(tokens);
        let _phase = profile.phase(Phase::Sampling);
        let begin = profile.begin();
        std::thread::sleep(MOMENT);
        profile.computed(1, begin);
        profile.barrier();
    }

    fn time(profiled: &Profiled, phase: Phase) -> &PhaseReport {
        profiled.phases.iter().find(|found| found.phase == phase).unwrap()
    }

    #[test]
    fn steps_of_the_wanted_size_are_added_up() {
        let profile = Profile::new(2);
        profile.start(3);
        [3, 1, 3, 5].into_iter().for_each(|tokens| sampled(&profile, tokens));
        let found = profile.stop();
        let sampling = time(&found, Phase::Sampling);
        assert_eq!((found.steps, sampling.barriers), (2, 2));
        assert!(found.time() >= sampling.time && sampling.time >= sampling.busy[1]);
        assert!(sampling.busy[1] >= 2 * MOMENT && sampling.busy[0] == Duration::ZERO);
        assert_eq!(time(&found, Phase::Head).time, Duration::ZERO);
    }

    #[test]
    fn nothing_is_measured_while_it_is_off_and_all_is_forgotten_when_it_starts() {
        let profile = Profile::new(2);
        sampled(&profile, 3);
        assert_eq!(profile.stop().time(), Duration::ZERO);
        profile.start(3);
        sampled(&profile, 3);
        profile.stop();
        sampled(&profile, 3);
        assert_eq!(profile.stop().steps, 1);
        profile.start(3);
        assert_eq!(profile.stop().time(), Duration::ZERO);
    }

    #[test]
    fn a_phase_within_another_does_not_count_as_both() {
        let profile = Profile::new(1);
        profile.start(1);
        let begin = Instant::now();
        {
            let _step = profile.step(1);
            let _outer = profile.phase(Phase::Down);
            drop((profile.phase(Phase::Quantize), std::thread::sleep(MOMENT)));
            std::thread::sleep(MOMENT);
        }
        let (elapsed, found) = (begin.elapsed(), profile.stop());
        assert!(found.time() >= 2 * MOMENT && found.time() <= elapsed);
        assert!(time(&found, Phase::Down).time >= MOMENT);
        assert!(time(&found, Phase::Quantize).time >= MOMENT);
    }
}
