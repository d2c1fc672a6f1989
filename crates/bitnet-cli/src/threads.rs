//! How many compute threads, where they run, and which rule says so: flags, then the environment, then the machine.

mod omp;
mod placement;

use std::fmt;

use anyhow::Result;
use bitnet::{ModelConfig, PlacementError, ThreadPlan};
use bitnet_kernels::cpu::affinity;
use bitnet_kernels::cpu::plan::ThreadConfig;
use bitnet_kernels::cpu::topology::Topology;

use crate::args::ThreadArgs;
use crate::failure::Failure;
pub use placement::PlacementArgs;
use placement::Wanted;

/// More than any machine can use on one model, and few enough to start.
pub const MAX: usize = 1024;

/// Variables in order of precedence.
pub const VARIABLES: [&str; 3] = ["BITNET_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// Variables of libraries that are not in here; `info` says that they do nothing.
pub const IGNORED: [&str; 2] = ["MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"];

/// A number of compute threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads {
    pub count: usize,
    pub rule: Rule,
}

/// What decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    Flag,
    Variable(&'static str),
    Automatic(String),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("-t/--threads"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Automatic(reason) => write!(f, "automatic: {reason}"),
        }
    }
}

/// The threads that are asked for, and what the machine makes of them.
pub struct Chosen {
    pub threads: Threads,
    pub plan: ThreadPlan,
    /// The flag or variable that says whether threads are bound.
    pub pin_rule: &'static str,
    /// The same for what they do without work.
    pub wait_rule: &'static str,
    /// What is not as asked for, or costs time.
    pub warnings: Vec<String>,
    /// That there are more threads than processors, if so.
    pub oversubscription: Option<String>,
    config: ThreadConfig,
}

impl Chosen {
    /// Writes it into a model's settings.
    pub fn apply(&self, config: &mut ModelConfig) {
        let ThreadConfig { threads, threads_batch, placement, wait } = self.config.clone();
        config.threads = threads;
        config.threads_batch = threads_batch;
        config.placement = placement;
        config.wait_policy = wait;
    }
}

/// Decides everything about threads. `env` gives a variable's value.
pub fn choose(
    args: &ThreadArgs,
    env: &dyn Fn(&str) -> Option<String>,
    topology: &Topology,
) -> Result<Chosen> {
    let Wanted { placement, pin_rule, wait, wait_rule, mut warnings } = args.placement.decide(env);
    let current = affinity::current_cpu();
    let narrowed = placement.narrow(topology, current).map_err(refused)?;
    let threads = decide(args.threads, env, &narrowed)?;
    let asked = match threads.rule {
        Rule::Automatic(_) => 0,
        _ => threads.count,
    };
    let mut config =
        ThreadConfig { threads: asked, threads_batch: args.threads_batch, placement, wait };
    let plan = match ThreadPlan::new(&config, topology, current) {
        // Places come from a variable that may have been set for another machine.
        Err(error @ PlacementError::NoPlace { .. }) => {
            warnings.push(format!("OMP_PLACES is ignored: {error}"));
            config.placement.pin = None;
            ThreadPlan::new(&config, topology, current)
        }
        plan => plan,
    };
    let plan = plan.map_err(refused)?;
    warnings.extend(plan.placement.warnings.iter().cloned());
    let oversubscription = threads.warning(&narrowed);
    if topology.numa_balancing && topology.nodes.len() > 1 {
        warnings.push(format!(
            "this machine has {} memory nodes, and /proc/sys/kernel/numa_balancing is on: the system moves memory between them, which costs time",
            topology.nodes.len()
        ));
    }
    Ok(Chosen { threads, plan, pin_rule, wait_rule, warnings, oversubscription, config })
}

fn refused(error: PlacementError) -> Failure {
    Failure::input(error.to_string()).hint(error.help())
}

/// Decides the number. `env` gives a variable's value; 0 or nothing leaves it to the next rule.
pub fn decide(
    flag: usize,
    env: impl Fn(&str) -> Option<String>,
    topology: &Topology,
) -> Result<Threads, Failure> {
    if flag > 0 {
        return Ok(Threads { count: flag, rule: Rule::Flag });
    }
    for name in VARIABLES {
        let value = env(name).unwrap_or_default();
        match variable(name, &value)? {
            0 => {}
            count => return Ok(Threads { count, rule: Rule::Variable(name) }),
        }
    }
    let best = topology.recommended_threads();
    Ok(Threads { count: best.threads, rule: Rule::Automatic(best.reason) })
}

/// The process's environment, for [`decide`].
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// OpenMP's variable may hold a list, one count for each level of nesting; the first is meant for us.
fn variable(name: &str, value: &str) -> Result<usize, Failure> {
    let first =
        if name == "OMP_NUM_THREADS" { value.split(',').next().unwrap_or("") } else { value };
    match first.trim() {
        "" => Ok(0),
        text => text.parse().ok().filter(|count| *count <= MAX).ok_or_else(|| {
            Failure::input(format!("{name}={value} is no number of threads from 0 to {MAX}"))
                .hint("set it to a number, unset it, or give -t; 0 means automatic")
        }),
    }
}

/// Reads the value of `-t`.
pub fn parse(text: &str) -> Result<usize, String> {
    let expected = format!("expected 0 (automatic) to {MAX}");
    text.parse().ok().filter(|count| *count <= MAX).ok_or(expected)
}

impl Threads {
    /// What to say if there are more threads than processors.
    pub fn warning(&self, topology: &Topology) -> Option<String> {
        let available = topology.available();
        (self.count > available).then(|| {
            let processors = if available == 1 { "CPU" } else { "CPUs" };
            format!(
                "{} threads ({}) on {available} available {processors}: they take turns",
                self.count, self.rule
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide_with(flag: usize, env: &[(&str, &str)]) -> Result<Threads, Failure> {
        let value = |name: &str| Some(env.iter().find(|(n, _)| *n == name)?.1.to_owned());
        decide(flag, value, &Topology::default())
    }

    #[track_caller]
    fn check(flag: usize, env: &[(&str, &str)], count: usize, rule: Rule) {
        assert_eq!(decide_with(flag, env).unwrap(), Threads { count, rule });
    }

    #[test]
    fn the_flag_wins_then_the_variables_in_order() {
        let env = [("BITNET_THREADS", "3"), ("RAYON_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "5")];
        check(2, &env, 2, Rule::Flag);
        check(0, &env, 3, Rule::Variable("BITNET_THREADS"));
        check(0, &env[1..], 4, Rule::Variable("RAYON_NUM_THREADS"));
        check(0, &env[2..], 5, Rule::Variable("OMP_NUM_THREADS"));
    }

    #[test]
    fn zero_and_empty_leave_it_to_the_next_rule() {
        let env = [("BITNET_THREADS", "0"), ("RAYON_NUM_THREADS", " "), ("OMP_NUM_THREADS", "7,2")];
        check(0, &env, 7, Rule::Variable("OMP_NUM_THREADS"));
        let automatic = Rule::Automatic("one physical core".to_owned());
        check(0, &[("OMP_NUM_THREADS", "0"), ("MKL_NUM_THREADS", "9")], 1, automatic);
    }

    #[test]
    fn a_bad_variable_is_named_with_its_value() {
        for bad in ["many", "-1", "2.5", "99999999999999999999", "4,x"] {
            let error = decide_with(0, &[("BITNET_THREADS", bad)]).unwrap_err().to_string();
            assert!(error.contains(&format!("BITNET_THREADS={bad}")), "{error}");
        }
        check(2, &[("BITNET_THREADS", "many")], 2, Rule::Flag);
    }

    #[test]
    fn too_many_threads_are_a_warning() {
        let threads = decide_with(9, &[]).unwrap();
        let warning = threads.warning(&Topology::default()).unwrap();
        assert!(warning.starts_with("9 threads (-t/--threads) on 1 available CPU"), "{warning}");
        assert_eq!(decide_with(1, &[]).unwrap().warning(&Topology::default()), None);
    }
}
