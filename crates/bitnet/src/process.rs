//! What the system tells about this process.

/// Memory of this process in bytes, as far as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessMemory {
    /// In memory now.
    pub resident: Option<u64>,
    /// Of that, what is in no file.
    pub anonymous: Option<u64>,
    /// The most that was, since the process began.
    pub peak: Option<u64>,
}

impl ProcessMemory {
    pub fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { resident: field("VmRSS:"), anonymous: field("RssAnon:"), peak: field("VmHWM:") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_system_says() {
        let found = ProcessMemory::parse(
            "Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t 100 kB\n",
        );
        let (resident, anonymous, peak) = (Some(200 << 10), Some(100 << 10), Some(300 << 10));
        let expected = ProcessMemory { resident, anonymous, peak };
        assert_eq!(found, expected);
        assert_eq!(ProcessMemory::parse("VmRSS: x"), ProcessMemory::default());
    }
}
