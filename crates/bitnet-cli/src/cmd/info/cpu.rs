//! The processor, and which of its instructions are used.

use std::collections::BTreeMap;

use bitnet::{CpuFeatures, Isa};
use bitnet_kernels::cpu::placement::ranges;
use bitnet_kernels::cpu::selection::{Candidate, Verdict};
use bitnet_kernels::cpu::topology::{CpuClass, Memory, Topology};
use serde_json::{Value, json};

use super::Section;
use crate::report::{Align, Table, bytes, plural};

pub fn processor(topology: &Topology) -> Section {
    let mut table = Table::facts();
    let unknown = || "unknown".to_owned();
    table.row(["name", &topology.model_name.clone().unwrap_or_else(unknown)]);
    table.row(["cores", &cores(topology)]);
    table.row(["caches", &caches(topology)]);
    let memory = |m: Memory| format!("{}, {} available", bytes(m.total), bytes(m.available));
    let memory = topology.memory.map_or_else(unknown, memory);
    table.row(["memory", &memory]);
    if topology.nodes.len() > 1 {
        let nodes: Vec<_> =
            topology.nodes.iter().map(|n| format!("{}: CPUs {}", n.id, ranges(&n.cpus))).collect();
        table.row(["memory nodes", &nodes.join("; ")]);
    }
    table.row(["allowed", &cpus(&topology.allowed)]);
    let quota =
        topology.quota.as_ref().map_or("none".to_owned(), |q| format!("{q}, set by {}", q.group));
    table.row(["quota", &quota]);
    table.row(["virtual machine", topology.virtual_machine.as_deref().unwrap_or("no sign of one")]);
    table.row(["features", &features().join(" ")]);
    Section {
        title: "Processor",
        text: table.render("  "),
        json: ("cpu", processor_json(topology)),
    }
}

fn processor_json(topology: &Topology) -> Value {
    let caches: Vec<_> = topology
        .caches
        .iter()
        .map(|c| json!({ "level": c.level, "bytes": c.bytes, "cpus": c.cpus }))
        .collect();
    let nodes: Vec<_> =
        topology.nodes.iter().map(|n| json!({ "id": n.id, "cpus": n.cpus })).collect();
    let class = |class: CpuClass| topology.cores_of(class);
    json!({
        "name": topology.model_name,
        "logical": topology.cpus.len(),
        "physical_cores": topology.physical_cores(),
        "performance_cores": class(CpuClass::Performance),
        "efficiency_cores": class(CpuClass::Efficiency),
        "low_power_cores": class(CpuClass::LowPower),
        "smt": topology.has_smt(),
        "caches": caches,
        "nodes": nodes,
        "allowed": topology.allowed,
        "quota_cpus": topology.quota.as_ref().map(|quota| quota.cpus()),
        "virtual_machine": topology.virtual_machine,
        "memory_bytes": topology.memory.map(|m| m.total),
        "available_memory_bytes": topology.memory.map(|m| m.available),
        "features": features(),
    })
}

/// `8 physical (2 performance, 6 efficiency), 10 logical`.
fn cores(topology: &Topology) -> String {
    let classes = [CpuClass::Performance, CpuClass::Efficiency, CpuClass::LowPower];
    let counts = classes.map(|class| (topology.cores_of(class), class));
    let counts: Vec<_> = counts.iter().filter(|(count, _)| *count > 0).collect();
    let kinds: Vec<_> = counts.iter().map(|(count, class)| format!("{count} {class}")).collect();
    let kinds = if kinds.len() > 1 { format!(" ({})", kinds.join(", ")) } else { String::new() };
    let smt = if topology.has_smt() { " (SMT)" } else { "" };
    format!("{} physical{kinds}, {} logical{smt}", topology.physical_cores(), topology.cpus.len())
}

/// `L1d 2 × 32 KiB, L2 2 × 1 MiB, L3 32 MiB for 2 CPUs`.
fn caches(topology: &Topology) -> String {
    let mut kinds: BTreeMap<(usize, u64, usize), usize> = BTreeMap::new();
    for cache in &topology.caches {
        *kinds.entry((cache.level, cache.bytes, cache.cpus.len())).or_default() += 1;
    }
    let describe = |((level, size, sharing), count): (&(usize, u64, usize), &usize)| {
        let kind = if *level == 1 { "d" } else { "" };
        let count = if *count > 1 { format!("{count} × ") } else { String::new() };
        let sharing = if *sharing > 1 { format!(" for {sharing} CPUs") } else { String::new() };
        format!("L{level}{kind} {count}{}{sharing}", bytes(*size))
    };
    let kinds: Vec<_> = kinds.iter().map(describe).collect();
    if kinds.is_empty() { "unknown".to_owned() } else { kinds.join(", ") }
}

fn cpus(ids: &[usize]) -> String {
    format!("{} by the affinity mask: {}", plural(ids.len(), "CPU"), ranges(ids))
}

/// Features of this processor that kernels use or ask for.
pub fn features() -> Vec<&'static str> {
    let f = CpuFeatures::detect();
    let all = [
        ("ssse3", f.ssse3),
        ("sse4.1", f.sse41),
        ("sse4.2", f.sse42),
        ("avx", f.avx),
        ("avx2", f.avx2),
        ("fma", f.fma),
        ("f16c", f.f16c),
        ("avxvnni", f.avxvnni),
        ("avx512f", f.avx512f),
        ("avx512bw", f.avx512bw),
        ("avx512vl", f.avx512vl),
        ("avx512vnni", f.avx512vnni),
        ("neon", f.neon),
        ("dotprod", f.dotprod),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

pub fn levels() -> Section {
    let selection = Isa::selection();
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Left]);
    table.row(["level", "self-test", "time", "verdict"]);
    for candidate in &selection.candidates {
        let time = candidate.nanoseconds.map_or("-".to_owned(), |ns| format!("{:.1} µs", ns / 1e3));
        let (test, verdict) = (self_test(candidate), candidate.verdict.to_string());
        table.row([candidate.level.name(), test, &time, &verdict]);
    }
    let candidates: Vec<_> = selection.candidates.iter().map(candidate_json).collect();
    let json = json!({ "chosen": selection.chosen.name(), "levels": candidates });
    Section { title: "SIMD levels", text: table.render("  "), json: ("simd", json) }
}

fn candidate_json(candidate: &Candidate) -> Value {
    json!({
        "level": candidate.level.name(),
        "self_test": self_test(candidate),
        "nanoseconds": candidate.nanoseconds,
        "chosen": candidate.verdict == Verdict::Chosen,
        "verdict": candidate.verdict.to_string(),
    })
}

fn self_test(candidate: &Candidate) -> &'static str {
    match candidate.verdict {
        Verdict::Chosen | Verdict::Slower | Verdict::Superseded(_) => "passed",
        Verdict::Wrong(_) => "failed",
        Verdict::Missing(_) => "-",
    }
}
