//! The kernel's ways to write numbers, lists and fields.

use super::Memory;

/// Numbers of processors end here: no kernel is built for more, and a garbled range must not fill memory.
const MAX_CPUS: usize = 1 << 16;

/// Product names that virtual machines show; real machines have these in none.
pub(super) const HYPERVISORS: [&str; 9] = [
    "KVM",
    "QEMU",
    "Standard PC",
    "VMware",
    "VirtualBox",
    "Virtual Machine",
    "Google Compute Engine",
    "HVM domU",
    "Bochs",
];

/// A list such as `0-3,8,10-11`, in order and without repetitions. `None` if it is garbled; an empty text is an empty list.
pub fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last || last >= MAX_CPUS || cpus.len() > MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

pub(super) fn number(text: &str) -> Option<usize> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A size such as `32K` or `36608K` or `2M`, in bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    u64::try_from(number(digits)?).ok()?.checked_mul(1 << shift)
}

/// The first `name : value` line's value.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// x86 says `model name`, some Arm kernels `Model` or `Hardware`.
pub(super) fn model_name(cpuinfo: &str) -> Option<String> {
    let name = ["model name", "cpu model", "Model", "Hardware"]
        .iter()
        .find_map(|key| field(cpuinfo, key).filter(|name| !name.is_empty()))?;
    let printable: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    Some(printable.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Numbers of the `processor` lines, for kernels without `/sys`.
pub(super) fn processors(cpuinfo: &str) -> Vec<usize> {
    let mut cpus: Vec<_> = cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "processor")
        .filter_map(|(_, value)| number(value))
        .filter(|id| *id < MAX_CPUS)
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

pub(super) fn memory(meminfo: &str) -> Option<Memory> {
    let bytes = |name| {
        let kilobytes = number(field(meminfo, name)?.strip_suffix("kB")?)?;
        u64::try_from(kilobytes).ok()?.checked_mul(1024)
    };
    let total = bytes("MemTotal")?;
    Some(Memory { total, available: bytes("MemAvailable").unwrap_or(total).min(total) })
}
