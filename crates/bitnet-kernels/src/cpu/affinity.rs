//! Which processors a thread may run on.

use std::io;

/// Lets the calling thread, and threads that it starts, run on `cpus` alone; an empty list leaves it as it is.
///
/// # Errors
/// If the system has no such call, or refuses: a CPU does not exist, or is outside what this process may use.
pub fn bind(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    system::bind(cpus).map_err(|error| {
        let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
        io::Error::new(error.kind(), format!("cannot run on CPUs {}: {error}", cpus.join(",")))
    })
}

/// Whether [`bind`] can work on this system.
pub const SUPPORTED: bool = cfg!(target_os = "linux");

/// The processor that the calling thread runs on now, where the system tells.
pub fn current_cpu() -> Option<usize> {
    system::current_cpu()
}

/// The processors that the calling thread may run on; empty where the system does not tell.
pub fn current() -> Vec<usize> {
    system::current()
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

    pub fn bind(cpus: &[usize]) -> io::Result<()> {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            if cpu >= CpuSet::MAX_CPU {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no such CPU"));
            }
            set.set(cpu);
        }
        Ok(sched_setaffinity(None, &set)?)
    }

    pub fn current_cpu() -> Option<usize> {
        Some(sched_getcpu())
    }

    pub fn current() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    pub fn bind(_: &[usize]) -> io::Result<()> {
        let message = "this system does not let a program choose processors for its threads";
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }

    pub fn current_cpu() -> Option<usize> {
        None
    }

    pub fn current() -> Vec<usize> {
        Vec::new()
    }
}
