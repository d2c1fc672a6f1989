//! Which compute thread runs on which processors.
//!
//! A place is a set of processors; a thread is bound to one, and the system moves it among them. Without pinning, all
//! threads share one place, and only if something narrows it: a list of processors, or a memory node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::affinity;
use super::topology::{Cpu, CpuClass, Topology};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementConfig {
    /// Binds each thread to a place of its own. None leaves it to the system, which is best where several programs share
    /// a machine: each would bind its first thread to the same processor.
    pub pin: Option<Pinning>,
    /// Processors to use instead of all that the process may use; empty: all.
    pub cpus: Vec<usize>,
    /// How threads relate to memory nodes.
    pub numa: Numa,
}

/// How threads are bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinning {
    /// What a thread is bound to.
    pub places: Places,
    /// Which places are taken if there are more than threads.
    pub order: Order,
}

/// What a thread is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Places {
    /// One logical processor: one of each physical core first, fast cores before slow ones, SMT siblings last.
    #[default]
    Threads,
    /// All logical processors of a physical core.
    Cores,
    /// All processors behind one last-level cache.
    LastLevelCaches,
    /// All processors of a socket.
    Sockets,
    /// All processors of a memory node.
    Nodes,
    /// These sets.
    List(Vec<Vec<usize>>),
}

/// Which places are taken if there are more than threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Neighbours, which share caches.
    #[default]
    Close,
    /// As far apart as possible, which brings more caches and memory channels.
    Spread,
}

/// How threads relate to memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Not at all.
    #[default]
    Off,
    /// Evenly over all nodes, neighbouring threads on the same one.
    Distribute,
    /// All on the node that the program runs on when it asks.
    Isolate,
}

/// Which threads run where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The processors of each thread, from the caller on; empty: the system chooses.
    pub places: Vec<Vec<usize>>,
    /// Why there, as a short phrase.
    pub rule: String,
    /// What was asked for and does nothing on this machine.
    pub warnings: Vec<String>,
}

/// What cannot be done as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// This system has no such call.
    #[error("this system does not let a program choose processors for its threads")]
    Unsupported,
    /// A CPU that does not exist, or is outside the affinity mask.
    #[error("CPU {cpu} is not among those that this process may use: {}", ranges(.allowed))]
    NotAllowed {
        /// The number asked for.
        cpu: usize,
        /// Those that it may use.
        allowed: Vec<usize>,
    },
    /// None of the places has a processor that the process may use.
    #[error("none of the places has a CPU that this process may use: {}", ranges(.allowed))]
    NoPlace {
        /// Those that it may use.
        allowed: Vec<usize>,
    },
}

impl PlacementError {
    /// What to try.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Unsupported => "leave out pinning, CPU lists and memory nodes",
            Self::NotAllowed { .. } | Self::NoPlace { .. } => {
                "name CPUs from that list, or start the program with a wider affinity mask"
            }
        }
    }
}

impl PlacementConfig {
    /// Whether the system has to be asked for anything.
    fn asks(&self) -> bool {
        self.pin.is_some() || !self.cpus.is_empty() || self.numa != Numa::Off
    }

    /// The part of the machine that is left by the list of processors and the memory node, for a program that runs on
    /// `current` now.
    ///
    /// # Errors
    /// If a processor on the list is not allowed, or the system cannot bind threads.
    pub fn narrow(
        &self,
        topology: &Topology,
        current: Option<usize>,
    ) -> Result<Topology, PlacementError> {
        if self.asks() && !affinity::SUPPORTED {
            return Err(PlacementError::Unsupported);
        }
        let mut narrow = topology.clone();
        if !self.cpus.is_empty() {
            let allowed = &topology.allowed;
            if let Some(&cpu) = self.cpus.iter().find(|cpu| allowed.binary_search(cpu).is_err()) {
                return Err(PlacementError::NotAllowed { cpu, allowed: allowed.clone() });
            }
            let cpus: BTreeSet<_> = self.cpus.iter().copied().collect();
            narrow.allowed = cpus.into_iter().collect();
            narrow.narrowed_by = Some("the CPU list".to_owned());
        }
        if self.numa == Numa::Isolate
            && let Some((id, cpus)) = isolated(&narrow, current)
        {
            narrow.allowed = cpus;
            narrow.narrowed_by = Some(format!("memory node {id}"));
        }
        Ok(narrow)
    }
}

/// The node that `current` is on, or the one with most usable processors, with those.
fn isolated(topology: &Topology, current: Option<usize>) -> Option<(usize, Vec<usize>)> {
    if topology.nodes.len() < 2 {
        return None;
    }
    let nodes = usable_nodes(topology);
    let here = nodes.iter().find(|(_, cpus)| current.is_some_and(|cpu| cpus.contains(&cpu)));
    let most = || nodes.iter().rev().max_by_key(|(_, cpus)| cpus.len());
    here.or_else(most).cloned()
}

/// Nodes with processors that may be used, and those.
fn usable_nodes(topology: &Topology) -> Vec<(usize, Vec<usize>)> {
    let usable = |cpu: &usize| topology.allowed.binary_search(cpu).is_ok();
    let nodes = topology.nodes.iter();
    nodes
        .map(|node| (node.id, node.cpus.iter().copied().filter(usable).collect::<Vec<_>>()))
        .filter(|(_, cpus)| !cpus.is_empty())
        .collect()
}

impl Placement {
    /// Places `threads` threads on what [`PlacementConfig::narrow`] left.
    ///
    /// # Errors
    /// If a list of places has no processor that may be used.
    pub fn new(
        config: &PlacementConfig,
        narrowed: &Topology,
        threads: usize,
    ) -> Result<Self, PlacementError> {
        let mut warnings = Vec::new();
        let nodes = usable_nodes(narrowed);
        if config.numa != Numa::Off && narrowed.nodes.len() < 2 {
            warnings.push("this machine has one memory node: there is nothing to choose".into());
        }
        let shares = match config.numa {
            Numa::Distribute if nodes.len() > 1 => shares(&nodes, threads),
            _ => vec![(narrowed.allowed.clone(), threads)],
        };
        let mut places = Vec::new();
        for (cpus, count) in shares {
            match &config.pin {
                Some(pinning) => places.extend(pinning.places(narrowed, &cpus, count)?),
                None => places.extend(vec![cpus; count]),
            }
        }
        let one_node = nodes.len() < 2 || config.numa != Numa::Distribute;
        if config.pin.is_none()
            && config.cpus.is_empty()
            && narrowed.narrowed_by.is_none()
            && one_node
        {
            places.clear();
        }
        let mut rule = match &config.pin {
            Some(pinning) => pinning.to_string(),
            None if places.is_empty() => "not bound: the system chooses".to_owned(),
            None => "all of them together".to_owned(),
        };
        if !one_node {
            rule += &format!(", spread over {} memory nodes", nodes.len());
        }
        if let Some(by) = &narrowed.narrowed_by {
            rule += &format!(", within {by}");
        }
        Ok(Self { places, rule, warnings })
    }

    /// All processors that threads are bound to; empty: no limit.
    pub fn cpus(&self) -> Vec<usize> {
        let cpus: BTreeSet<_> = self.places.iter().flatten().copied().collect();
        cpus.into_iter().collect()
    }
}

/// How many threads go to which node: in turn by their share of the processors, so that none is crowded before the others
/// are full. The first threads are on the first node.
fn shares(nodes: &[(usize, Vec<usize>)], threads: usize) -> Vec<(Vec<usize>, usize)> {
    let mut counts = vec![0; nodes.len()];
    for _ in 0..threads {
        let fullness = |node: &usize| (counts[*node] as f64 + 1.0) / nodes[*node].1.len() as f64;
        let next = (0..nodes.len()).min_by(|a, b| fullness(a).total_cmp(&fullness(b)));
        counts[next.expect("there are nodes")] += 1;
    }
    nodes.iter().zip(counts).map(|((_, cpus), count)| (cpus.clone(), count)).collect()
}

impl Pinning {
    /// The places of `threads` threads among `cpus`.
    fn places(
        &self,
        topology: &Topology,
        cpus: &[usize],
        threads: usize,
    ) -> Result<Vec<Vec<usize>>, PlacementError> {
        let usable: Vec<Cpu> =
            topology.cpus.iter().copied().filter(|cpu| cpus.contains(&cpu.id)).collect();
        let layers = match &self.places {
            Places::Threads => {
                layers(&usable, |rank, cpu| (cpu.class == CpuClass::LowPower, rank, cpu.class))
            }
            Places::Cores => cores(&usable),
            Places::LastLevelCaches => vec![groups(&usable, |cpu| cache_of(topology, cpu.id))],
            Places::Sockets => vec![groups(&usable, |cpu| Some(cpu.package))],
            Places::Nodes => vec![groups(&usable, |cpu| node_of(topology, cpu.id))],
            Places::List(list) => {
                let kept = |place: &Vec<usize>| -> Vec<usize> {
                    place.iter().copied().filter(|cpu| cpus.contains(cpu)).collect()
                };
                vec![list.iter().map(kept).filter(|place| !place.is_empty()).collect()]
            }
        };
        if layers.iter().all(Vec::is_empty) {
            return Err(PlacementError::NoPlace { allowed: topology.allowed.clone() });
        }
        Ok(self.order.take(&layers, threads))
    }
}

/// Single processors, the best layer first, by `(siblings before it, itself)`.
fn layers<K: Ord>(usable: &[Cpu], key: impl Fn(usize, &Cpu) -> K) -> Vec<Vec<Vec<usize>>> {
    let mut layers: BTreeMap<K, Vec<&Cpu>> = BTreeMap::new();
    for cpu in usable {
        let core = (cpu.package, cpu.core);
        let before = |other: &&Cpu| (other.package, other.core) == core && other.id < cpu.id;
        layers.entry(key(usable.iter().filter(before).count(), cpu)).or_default().push(cpu);
    }
    let sorted = |mut layer: Vec<&Cpu>| {
        layer.sort_by_key(|cpu| (cpu.package, cpu.core, cpu.id));
        layer.into_iter().map(|cpu| vec![cpu.id]).collect()
    };
    layers.into_values().map(sorted).collect()
}

/// Physical cores with all their usable processors, the fast ones first.
fn cores(usable: &[Cpu]) -> Vec<Vec<Vec<usize>>> {
    let mut classes: BTreeMap<CpuClass, BTreeMap<(usize, usize), Vec<usize>>> = BTreeMap::new();
    for cpu in usable {
        let cores = classes.entry(cpu.class).or_default();
        cores.entry((cpu.package, cpu.core)).or_default().push(cpu.id);
    }
    classes.into_values().map(|cores| cores.into_values().collect()).collect()
}

/// Processors with the same key together; those without one are left out.
fn groups(usable: &[Cpu], key: impl Fn(&Cpu) -> Option<usize>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for cpu in usable {
        if let Some(key) = key(cpu) {
            groups.entry(key).or_default().push(cpu.id);
        }
    }
    groups.into_values().collect()
}

/// The last cache that a processor is behind, by its first processor.
fn cache_of(topology: &Topology, cpu: usize) -> Option<usize> {
    let caches = topology.caches.iter().filter(|cache| cache.cpus.contains(&cpu));
    caches.max_by_key(|cache| cache.level).and_then(|cache| cache.cpus.first().copied())
}

fn node_of(topology: &Topology, cpu: usize) -> Option<usize> {
    topology.nodes.iter().find(|node| node.cpus.contains(&cpu)).map(|node| node.id)
}

impl Order {
    /// One place for each of `threads` threads; places that are too few are taken again.
    fn take(self, layers: &[Vec<Vec<usize>>], threads: usize) -> Vec<Vec<usize>> {
        let mut places: Vec<&Vec<usize>> = Vec::new();
        for layer in layers {
            if self == Self::Spread && places.len() >= threads {
                break; // worse places would only be in the way
            }
            places.extend(layer);
        }
        let count = places.len();
        if self == Self::Spread {
            places.sort();
        }
        let index = |thread: usize| match self == Self::Spread && threads <= count {
            true => thread * count / threads,
            false => thread % count,
        };
        (0..threads).map(|thread| places[index(thread)].clone()).collect()
    }
}

impl fmt::Display for Pinning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.places {
            Places::Threads => "one CPU each, SMT siblings last",
            Places::Cores => "one physical core each",
            Places::LastLevelCaches => "one last-level cache each",
            Places::Sockets => "one socket each",
            Places::Nodes => "one memory node each",
            Places::List(_) => "one place of the list each",
        })?;
        f.write_str(if self.order == Order::Spread { ", far apart" } else { "" })
    }
}

impl FromStr for Numa {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "distribute" => Ok(Self::Distribute),
            "isolate" => Ok(Self::Isolate),
            _ => Err("expected off, distribute or isolate"),
        }
    }
}

/// `0-3,8`.
pub fn ranges(ids: &[usize]) -> String {
    let runs = ids.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        _ => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(all(test, target_os = "linux"))]
// elsewhere the answer to all of it is that it cannot be done
mod tests;
