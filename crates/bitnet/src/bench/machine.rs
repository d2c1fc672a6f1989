//! Where a measurement was made.

use bitnet_kernels::cpu::topology::Topology;
use serde::Serialize;

/// The machine, as far as it matters to speed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: Option<String>,
    /// Logical processors that this process may use.
    pub processors: usize,
    /// Physical cores.
    pub cores: usize,
    /// Bytes of all caches of the last level.
    pub last_level_cache: u64,
    /// Bytes of memory that programs could still take.
    pub available_memory: Option<u64>,
    /// The hypervisor, if this is a virtual machine.
    pub virtual_machine: Option<String>,
    /// Operating system and architecture.
    pub os: String,
    /// When the system gives large pages, in its own words: `always`, `madvise` or `never`.
    pub huge_pages: Option<String>,
    /// Processes that wanted to run during the last minute, where the system tells. Those of others slow a measurement down.
    pub load_average: Option<f64>,
}

impl Machine {
    /// Looks at this machine.
    pub fn detect() -> Self {
        let topology = Topology::detect();
        let last = topology.caches.iter().map(|cache| cache.level).max();
        let caches = topology.caches.iter().filter(|cache| Some(cache.level) == last);
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Self {
            processors: topology.available(),
            cores: topology.physical_cores(),
            last_level_cache: caches.map(|cache| cache.bytes).sum(),
            available_memory: topology.memory.map(|memory| memory.available),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_average: load.and_then(|text| text.split(' ').next()?.parse().ok()),
            huge_pages: std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())),
            cpu: topology.model_name,
            virtual_machine: topology.virtual_machine,
        }
    }

    /// A buffer that no cache holds: eight times the last level, at least 256 MiB, and at most a quarter of the free memory.
    pub fn probe_bytes(&self) -> usize {
        if cfg!(test) {
            return 4 << 20; // tests look at no speed
        }
        let wanted = (8 * self.last_level_cache).clamp(256 << 20, 4 << 30);
        let most = self.available_memory.map_or(u64::MAX, |bytes| bytes / 4);
        wanted.min(most) as usize
    }
}
