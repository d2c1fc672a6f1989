//! How many threads to compute with if nobody says.

use std::collections::HashSet;
use std::fs;
use std::thread::available_parallelism;

/// Threads that this process may run at once, but no more than there are physical cores: decoding waits for memory, and the
/// second thread of a core waits for the same memory.
pub fn automatic_threads() -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(allowed, |cores| allowed.min(cores)).max(1)
}

/// Physical cores as Linux lists them; none elsewhere.
fn physical_cores() -> Option<usize> {
    let cpus = fs::read_dir("/sys/devices/system/cpu").ok()?;
    let cores: HashSet<(String, String)> = cpus
        .filter_map(|cpu| {
            let topology = cpu.ok()?.path().join("topology");
            let read = |name| fs::read_to_string(topology.join(name)).ok();
            Some((read("physical_package_id")?, read("core_id")?))
        })
        .collect();
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_and_at_most_what_the_process_may_use() {
        assert!((1..=available_parallelism().unwrap().get()).contains(&automatic_threads()));
    }
}
