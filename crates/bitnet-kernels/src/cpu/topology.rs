//! What processors this process may use, and how many compute threads suit them.
//!
//! On Linux all of it is text under `/proc` and `/sys`; elsewhere only the number of processors is known. A file that is
//! missing or garbled leaves its fact unknown and is never an error: the engine runs on machines that hide all of this.

mod cgroup;
mod parse;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;

pub use cgroup::Quota;
pub use parse::cpu_list;
use parse::{number, size};

/// Longest text that is read from one file: `/proc/cpuinfo` of a machine with 4096 processors has some 6 MB.
const MAX_TEXT: u64 = 16 << 20;

/// Threads at most where cores cannot be told from their siblings, and fast ones from slow ones.
const UNKNOWN_THREADS: usize = 8;

/// The processors of this machine and this process's share of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// The processor's name, as it calls itself.
    pub model_name: Option<String>,
    /// Logical processors that are online, by number.
    pub cpus: Vec<Cpu>,
    /// Numbers of the logical processors that this process may run on: its affinity mask.
    pub allowed: Vec<usize>,
    /// What else narrowed `allowed`, such as `the CPU list`.
    pub narrowed_by: Option<String>,
    /// Nothing is known about the processors but their number.
    pub unknown: bool,
    /// Data and unified caches, from the first level up, each physical cache once.
    pub caches: Vec<Cache>,
    /// Memory nodes; a machine with one kind of memory has one.
    pub nodes: Vec<Node>,
    /// Whether the kernel moves memory between nodes by itself.
    pub numa_balancing: bool,
    /// The tightest limit on processor time among this process's control group and its parents.
    pub quota: Option<Quota>,
    /// What kind of virtual machine this is, if it is one.
    pub virtual_machine: Option<String>,
    /// Main memory.
    pub memory: Option<Memory>,
}

/// A logical processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: usize,
    /// The socket that it is in.
    pub package: usize,
    /// Its physical core within the socket; logical processors with the same one share it (SMT).
    pub core: usize,
    /// How fast it is among the others.
    pub class: CpuClass,
}

/// Kinds of cores on a machine that mixes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuClass {
    /// The fast ones; on most machines all.
    Performance,
    /// Intel's E-cores: slower, on the same last-level cache.
    Efficiency,
    /// Far slower: little Arm cores, and Intel's E-cores outside the last-level cache.
    LowPower,
}

/// A cache and who shares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// 1 for L1.
    pub level: usize,
    /// Its size.
    pub bytes: u64,
    /// The logical processors behind it.
    pub cpus: Vec<usize>,
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: usize,
    /// The logical processors that are near to it.
    pub cpus: Vec<usize>,
}

/// Main memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it, in bytes.
    pub total: u64,
    /// What programs can still take without swapping, in bytes.
    pub available: u64,
}

/// A number of compute threads and why that many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recommendation {
    /// At least 1.
    pub threads: usize,
    /// A short phrase such as `one for each of 6 physical cores`.
    pub reason: String,
}

impl Topology {
    /// Looks at this machine.
    pub fn detect() -> Self {
        let found =
            if cfg!(target_os = "linux") { Self::from_files(&read) } else { Self::default() };
        if !found.cpus.is_empty() {
            return found;
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = |id| Cpu { id, package: 0, core: id, class: CpuClass::Performance };
        Self {
            cpus: (0..cpus).map(cpu).collect(),
            allowed: (0..cpus).collect(),
            unknown: true,
            ..found
        }
    }

    /// Reads the topology from texts by their path, `None` where there is no such file.
    fn from_files(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let online = read("/sys/devices/system/cpu/online")
            .and_then(|text| cpu_list(&text))
            .unwrap_or_else(|| parse::processors(&cpuinfo));
        let caches = caches(&online, read);
        let classes = Classes::read(&online, &caches, read);
        let cpu = |&id: &usize| Cpu { class: classes.of(id), ..place(id, read) };
        let mask = read("/proc/self/status")
            .and_then(|text| cpu_list(parse::field(&text, "Cpus_allowed_list")?));
        Self {
            model_name: parse::model_name(&cpuinfo),
            allowed: mask.map_or_else(|| online.clone(), |mask| common(&mask, &online)),
            cpus: online.iter().map(cpu).collect(),
            narrowed_by: None,
            unknown: false,
            caches,
            nodes: nodes(read),
            numa_balancing: read("/proc/sys/kernel/numa_balancing")
                .and_then(|text| number(&text))
                .is_some_and(|mode| mode > 0),
            quota: cgroup::quota(read),
            virtual_machine: virtual_machine(&cpuinfo, read),
            memory: read("/proc/meminfo").and_then(|text| parse::memory(&text)),
        }
    }

    /// Physical cores among all logical processors.
    pub fn physical_cores(&self) -> usize {
        cores(&self.cpus)
    }

    /// Physical cores of one class.
    pub fn cores_of(&self, class: CpuClass) -> usize {
        cores(self.cpus.iter().filter(|cpu| cpu.class == class))
    }

    /// Whether several logical processors share a core.
    pub fn has_smt(&self) -> bool {
        self.physical_cores() < self.cpus.len()
    }

    /// Logical processors that this process can keep busy: those in its affinity mask, or fewer under a quota.
    pub fn available(&self) -> usize {
        let allowed = self.allowed.len().max(1);
        self.quota
            .as_ref()
            .map_or(allowed, |quota| allowed.min(quota.cpus().ceil() as usize))
            .max(1)
    }

    /// One compute thread for each physical core that the process may use and that is not a low-power one, within the
    /// quota. Decoding waits for memory, so a second thread on a core adds nothing; a core at a fraction of the others'
    /// speed finishes last in every operation.
    pub fn recommended_threads(&self) -> Recommendation {
        let usable = |cpu: &&Cpu| self.allowed.binary_search(&cpu.id).is_ok();
        let fast = |cpu: &&Cpu| usable(cpu) && cpu.class != CpuClass::LowPower;
        let (all, fast) =
            (cores(self.cpus.iter().filter(usable)), cores(self.cpus.iter().filter(fast)));
        let (threads, slow) = if fast == 0 { (all.max(1), 0) } else { (fast, all - fast) };
        if let Some(quota) = &self.quota {
            let whole = (quota.cpus().floor() as usize).max(1);
            if whole < threads {
                return Recommendation { threads: whole, reason: quota.to_string() };
            }
        }
        if self.unknown && threads > UNKNOWN_THREADS {
            let reason = format!("{UNKNOWN_THREADS} of {threads} CPUs, whose cores are unknown");
            return Recommendation { threads: UNKNOWN_THREADS, reason };
        }
        Recommendation { threads, reason: self.reason(threads, slow) }
    }

    fn reason(&self, cores: usize, left_out: usize) -> String {
        let mut reason = match cores {
            1 => "one physical core".to_owned(),
            _ => format!("one for each of {cores} physical cores"),
        };
        if left_out > 0 {
            reason += &format!(", without {left_out} low-power ones");
        }
        if self.allowed.len() < self.cpus.len() {
            reason += &format!(
                ", within {} ({} of {} CPUs)",
                self.narrowed_by.as_deref().unwrap_or("the affinity mask"),
                self.allowed.len(),
                self.cpus.len()
            );
        }
        reason
    }
}

impl fmt::Display for CpuClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Performance => "performance",
            Self::Efficiency => "efficiency",
            Self::LowPower => "low-power",
        })
    }
}

fn read(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn common(a: &[usize], b: &[usize]) -> Vec<usize> {
    a.iter().copied().filter(|id| b.binary_search(id).is_ok()).collect()
}

fn cores<'a>(cpus: impl IntoIterator<Item = &'a Cpu>) -> usize {
    cpus.into_iter().map(|cpu| (cpu.package, cpu.core)).collect::<BTreeSet<_>>().len()
}

/// Where a logical processor sits. One whose siblings are unknown counts as a core of its own.
fn place(id: usize, read: &dyn Fn(&str) -> Option<String>) -> Cpu {
    let fact = |name: &str| read(&format!("/sys/devices/system/cpu/cpu{id}/topology/{name}"));
    let package = fact("physical_package_id").and_then(|text| number(&text)).unwrap_or(0);
    // `core_id` is only unique within a die and sometimes within a cluster, so the first sibling stands for the core.
    let siblings = fact("core_cpus_list").or_else(|| fact("thread_siblings_list"));
    let core = siblings.and_then(|text| cpu_list(&text)?.first().copied()).unwrap_or(id);
    Cpu { id, package, core, class: CpuClass::Performance }
}

fn caches(online: &[usize], read: &dyn Fn(&str) -> Option<String>) -> Vec<Cache> {
    /// More than any processor has; ends the search where there is no `index` that is missing.
    const MAX_CACHES: usize = 16;
    let mut caches = Vec::new();
    for cpu in online {
        for index in 0..MAX_CACHES {
            let fact = |name: &str| {
                read(&format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}/{name}"))
            };
            let Some(level) = fact("level") else { break };
            let kind = fact("type").unwrap_or_default();
            let bytes = fact("size").and_then(|text| size(&text));
            let cpus = fact("shared_cpu_list").and_then(|text| cpu_list(&text));
            let (Some(level), Some(bytes), Some(cpus)) = (number(&level), bytes, cpus) else {
                continue;
            };
            // Every processor behind a cache shows it; the first one's view is kept.
            if kind.trim() != "Instruction" && cpus.first() == Some(cpu) {
                caches.push(Cache { level, bytes, cpus });
            }
        }
    }
    caches.sort_by_key(|cache: &Cache| (cache.level, cache.cpus.first().copied()));
    caches
}

fn nodes(read: &dyn Fn(&str) -> Option<String>) -> Vec<Node> {
    let ids = read("/sys/devices/system/node/online").and_then(|text| cpu_list(&text));
    let node = |id| {
        let cpus = cpu_list(&read(&format!("/sys/devices/system/node/node{id}/cpulist"))?)?;
        Some(Node { id, cpus })
    };
    ids.unwrap_or_default().into_iter().filter_map(node).collect()
}

/// Which processors are slower, by whichever of the kernel's ways says so here.
struct Classes {
    efficiency: Vec<usize>,
    low_power: Vec<usize>,
}

impl Classes {
    fn read(online: &[usize], caches: &[Cache], read: &dyn Fn(&str) -> Option<String>) -> Self {
        let list = |path: &str| read(path).and_then(|text| cpu_list(&text)).unwrap_or_default();
        // Intel: one performance-counter device for each kind of core.
        let efficiency = list("/sys/devices/cpu_atom/cpus");
        let mut low_power = list("/sys/devices/cpu_lowpower/cpus");
        if !list("/sys/devices/cpu_core/cpus").is_empty() {
            let shares_l3 = |id: &usize| caches.iter().any(|c| c.level == 3 && c.cpus.contains(id));
            if online.iter().any(shares_l3) {
                low_power.extend(efficiency.iter().copied().filter(|id| !shares_l3(id)));
            }
            return Self { efficiency, low_power };
        }
        // Arm: relative speed, 1024 for the fastest core.
        let capacity =
            |id: &usize| number(&read(&format!("/sys/devices/system/cpu/cpu{id}/cpu_capacity"))?);
        let capacities: Vec<_> =
            online.iter().filter_map(|id| Some((*id, capacity(id)?))).collect();
        let most = capacities.iter().map(|(_, capacity)| *capacity).max().unwrap_or(0);
        let slow = capacities.iter().filter(|(_, capacity)| *capacity < most.div_ceil(2));
        Self { efficiency: Vec::new(), low_power: slow.map(|(id, _)| *id).collect() }
    }

    fn of(&self, id: usize) -> CpuClass {
        if self.low_power.contains(&id) {
            CpuClass::LowPower
        } else if self.efficiency.contains(&id) {
            CpuClass::Efficiency
        } else {
            CpuClass::Performance
        }
    }
}

fn virtual_machine(cpuinfo: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let version = read("/proc/version").unwrap_or_default();
    if version.contains("WSL2") || version.contains("microsoft-standard") {
        return Some("WSL2".to_owned());
    }
    if version.contains("Microsoft") {
        return Some("WSL1".to_owned());
    }
    let fact = |path| Some(read(path)?.trim().to_owned()).filter(|text| !text.is_empty());
    let product = fact("/sys/class/dmi/id/product_name");
    let named = |text: &String| parse::HYPERVISORS.iter().any(|name| text.contains(name));
    if let Some(product) = product.filter(named) {
        return Some(product);
    }
    let flags = parse::field(cpuinfo, "flags").unwrap_or_default();
    let hypervisor = flags.split_whitespace().any(|flag| flag == "hypervisor");
    fact("/sys/hypervisor/type").or_else(|| hypervisor.then(|| "unnamed hypervisor".to_owned()))
}
