//! Keeping a process's memory in memory.

/// Whether memory was locked, as [`ModelConfig::lock_memory`](crate::ModelConfig::lock_memory) asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryLock {
    /// Nobody asked.
    NotAsked,
    /// What the process has in memory now, and what it brings in of what it has mapped, stays.
    Locked,
    /// The system refused, and the model runs without.
    Refused(LockRefused),
}

/// Why memory could not be locked; [`help`](Self::help) says what to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockRefused {
    /// More than this process may lock.
    #[error(
        "memory is not locked: the limit (RLIMIT_MEMLOCK) is {limit} bytes, and this process has {needed} mapped"
    )]
    Limit {
        /// What it may lock.
        limit: u64,
        /// What it has mapped.
        needed: u64,
    },
    /// For a reason of the system's own.
    #[error("memory is not locked: {0}")]
    System(String),
}

impl LockRefused {
    /// The next thing to try.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Limit { .. } => {
                "raise the limit: `ulimit -l unlimited` in the shell, or LimitMEMLOCK=infinity in a systemd unit"
            }
            Self::System(_) => {
                "leave it out: without a lock the model runs as fast while memory is not short"
            }
        }
    }
}

/// Locks what is in memory, and what is brought in later of what is mapped now: of a model's file that is only what is used.
#[cfg(target_os = "linux")]
pub fn lock() -> MemoryLock {
    use rustix::mm::{MlockAllFlags, mlockall};
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT) {
        Ok(()) => MemoryLock::Locked,
        Err(error) => MemoryLock::Refused(refused(
            rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
            mapped_bytes(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()),
            &error.to_string(),
        )),
    }
}

/// There is no such call here.
#[cfg(not(target_os = "linux"))]
pub fn lock() -> MemoryLock {
    MemoryLock::Refused(LockRefused::System("it is done on Linux only".into()))
}

#[cfg(any(target_os = "linux", test))]
fn refused(limit: Option<u64>, mapped: Option<u64>, error: &str) -> LockRefused {
    match (limit, mapped) {
        (Some(limit), Some(needed)) if needed > limit => LockRefused::Limit { limit, needed },
        _ => LockRefused::System(error.to_owned()),
    }
}

/// All address space of a process, which the system compares with the limit.
#[cfg(any(target_os = "linux", test))]
fn mapped_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_named_where_it_is_the_reason() {
        let error = refused(Some(8 << 20), Some(3 << 30), "no");
        assert_eq!(
            error.to_string(),
            "memory is not locked: the limit (RLIMIT_MEMLOCK) is 8388608 bytes, and this process has 3221225472 mapped"
        );
        assert!(error.help().contains("ulimit -l"));
        assert_eq!(refused(None, Some(1), "no"), LockRefused::System("no".into()));
        assert_eq!(refused(Some(2), Some(1), "no"), LockRefused::System("no".into()));
    }

    #[test]
    fn mapped_memory_is_what_the_system_says() {
        assert_eq!(mapped_bytes("Name:\tx\nVmSize:\t  300 kB\n"), Some(300 << 10));
        assert_eq!(mapped_bytes("VmSize: x"), None);
    }
}
