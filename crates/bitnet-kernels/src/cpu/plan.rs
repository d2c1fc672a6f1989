//! How many compute threads for what, and where they run: settings and the machine in, a plan out.

use super::placement::{Placement, PlacementConfig, PlacementError};
use super::pool::WaitPolicy;
use super::team;
use super::topology::{Recommendation, Topology};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadConfig {
    /// Threads for steps of few tokens, which is decoding; 0: as many as suit the machine, found on the first steps.
    pub threads: usize,
    /// Threads for steps of many tokens, which is prompts; 0: as `threads`, or as many as suit the machine.
    pub threads_batch: usize,
    /// Where they run.
    pub placement: PlacementConfig,
    /// What they do without work.
    pub wait: WaitPolicy,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadPlan {
    /// Threads for steps of few tokens; with `tune` the most.
    pub decode: usize,
    /// Threads for steps of many tokens.
    pub batch: usize,
    /// Whether fewer than `decode` are tried on the first steps.
    pub tune: bool,
    /// What the machine suggests, within the processors that were chosen.
    pub recommended: Recommendation,
    /// Where each thread runs.
    pub placement: Placement,
    /// What threads without work do.
    pub wait: WaitPolicy,
}

impl ThreadPlan {
    /// For a program that runs on the processor `current` now.
    ///
    /// # Errors
    /// If threads cannot be placed as asked.
    pub fn new(
        config: &ThreadConfig,
        topology: &Topology,
        current: Option<usize>,
    ) -> Result<Self, PlacementError> {
        let narrowed = config.placement.narrow(topology, current)?;
        let recommended = narrowed.recommended_threads();
        let or = |given: usize, otherwise: usize| if given > 0 { given } else { otherwise };
        let decode = or(config.threads, recommended.threads);
        let batch = or(config.threads_batch, decode);
        let tune = config.threads == 0 && !team::candidates(decode).is_empty();
        let placement = Placement::new(&config.placement, &narrowed, decode.max(batch))?;
        Ok(Self { decode, batch, tune, recommended, placement, wait: config.wait })
    }

    /// Threads in all.
    pub fn threads(&self) -> usize {
        self.decode.max(self.batch)
    }

    /// The numbers of threads that are tried for decoding.
    pub fn candidates(&self) -> Vec<usize> {
        if self.tune { team::candidates(self.decode) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::tests::Machine;
    use super::*;

    #[track_caller]
    fn check(threads: usize, threads_batch: usize, expected: (usize, usize, bool)) {
        let topology = Machine::new(8, 2).topology_of();
        let config = ThreadConfig { threads, threads_batch, ..ThreadConfig::default() };
        let plan = ThreadPlan::new(&config, &topology, None).unwrap();
        assert_eq!((plan.decode, plan.batch, plan.tune), expected);
    }

    #[test]
    fn a_number_for_one_kind_of_step_is_taken_as_it_is() {
        check(0, 0, (8, 8, true));
        check(3, 0, (3, 3, false));
        check(0, 12, (8, 12, true));
        check(2, 6, (2, 6, false));
        check(12, 6, (12, 6, false));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn automatic_numbers_keep_to_the_chosen_processors() {
        let topology = Machine::new(8, 2).topology_of();
        let placement = PlacementConfig { cpus: vec![0, 1, 8], ..PlacementConfig::default() };
        let config = ThreadConfig { placement, ..ThreadConfig::default() };
        let plan = ThreadPlan::new(&config, &topology, None).unwrap();
        assert_eq!((plan.decode, plan.batch, plan.placement.cpus()), (2, 2, vec![0, 1, 8]));
    }
}
