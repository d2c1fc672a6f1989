use super::*;
use std::collections::HashMap;

/// Files by their path, as a machine would show them.
#[derive(Clone, Default)]
pub(crate) struct Machine(HashMap<String, String>);

impl Machine {
    /// `cores` physical cores with `smt` logical processors each, numbered as Linux does: all first siblings first.
    pub(crate) fn new(cores: usize, smt: usize) -> Self {
        let mut machine = Self::default();
        machine.set("/sys/devices/system/cpu/online", &format!("0-{}", cores * smt - 1));
        for id in 0..cores * smt {
            let siblings: Vec<_> =
                (0..smt).map(|way| (id % cores + way * cores).to_string()).collect();
            let siblings = siblings.join(",");
            machine.topology(id, "physical_package_id", "0");
            machine.topology(id, "core_cpus_list", &siblings);
            machine.cache(id, 0, ["1", "Data", "32K", &siblings]);
            machine.cache(id, 1, ["1", "Instruction", "32K", &siblings]);
            machine.cache(id, 2, ["2", "Unified", "1024K", &siblings]);
            machine.cache(id, 3, ["3", "Unified", "32768K", &format!("0-{}", cores * smt - 1)]);
        }
        machine
    }

    pub(crate) fn set(&mut self, path: &str, text: &str) {
        self.0.insert(path.to_owned(), format!("{text}\n"));
    }

    pub(crate) fn with(mut self, path: &str, text: &str) -> Self {
        self.set(path, text);
        self
    }

    pub(crate) fn without(mut self, part: &str) -> Self {
        self.0.retain(|path, _| !path.contains(part));
        self
    }

    pub(crate) fn topology(&mut self, id: usize, name: &str, text: &str) {
        self.set(&format!("/sys/devices/system/cpu/cpu{id}/topology/{name}"), text);
    }

    pub(crate) fn cache(&mut self, id: usize, index: usize, facts: [&str; 4]) {
        for (name, text) in ["level", "type", "size", "shared_cpu_list"].iter().zip(facts) {
            self.set(&format!("/sys/devices/system/cpu/cpu{id}/cache/index{index}/{name}"), text);
        }
    }

    pub(crate) fn allowed(self, list: &str) -> Self {
        self.with(
            "/proc/self/status",
            &format!("Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t{list}"),
        )
    }

    pub(crate) fn topology_of(&self) -> Topology {
        Topology::from_files(&|path| self.0.get(path).cloned())
    }
}

const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";
const V1: &str = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct";

#[track_caller]
fn check_threads(machine: Machine, threads: usize, reason: &str) {
    let found = machine.topology_of().recommended_threads();
    assert_eq!((found.threads, found.reason.as_str()), (threads, reason));
}

#[track_caller]
fn check_quota(machine: Machine, expected: Option<(f64, &str)>) {
    let quota = machine.topology_of().quota;
    assert_eq!(quota.as_ref().map(|q| (q.cpus(), q.group.as_str())), expected);
}

#[test]
fn smt_siblings_get_one_thread_together() {
    check_threads(Machine::new(4, 2), 4, "one for each of 4 physical cores");
    let topology = Machine::new(4, 2).topology_of();
    assert_eq!((topology.cpus.len(), topology.physical_cores(), topology.has_smt()), (8, 4, true));
    assert!(!Machine::new(4, 1).topology_of().has_smt());
}

#[test]
fn the_affinity_mask_is_respected() {
    let machine = Machine::new(4, 2).allowed("1-2,5-6"); // two cores with both siblings
    let reason = "one for each of 2 physical cores, within the affinity mask (4 of 8 CPUs)";
    check_threads(machine, 2, reason);
    check_threads(
        Machine::new(4, 2).allowed("4"),
        1,
        "one physical core, within the affinity mask (1 of 8 CPUs)",
    );
    assert_eq!(Machine::new(4, 2).allowed("2-200").topology_of().available(), 6);
}

#[test]
fn cores_of_two_sockets_with_the_same_number_are_two() {
    let mut machine = Machine::new(2, 1);
    machine.topology(1, "physical_package_id", "1");
    machine.topology(1, "core_cpus_list", "garbage");
    check_threads(machine, 2, "one for each of 2 physical cores");
}

#[test]
fn a_quota_limits_threads_to_whole_processors() {
    let limited = |quota| {
        Machine::new(8, 1)
            .with("/proc/self/cgroup", "0::/")
            .with("/proc/self/mountinfo", V2)
            .with("/sys/fs/cgroup/cpu.max", quota)
    };
    check_threads(limited("350000 100000"), 3, "control group quota of 3.5 CPUs");
    check_threads(limited("150000 100000"), 1, "control group quota of 1.5 CPUs");
    check_threads(limited("50000 100000"), 1, "control group quota of 0.5 CPUs");
    check_threads(limited("1600000 100000"), 8, "one for each of 8 physical cores");
    assert_eq!(limited("350000 100000").topology_of().available(), 4);
}

#[test]
fn the_tightest_parent_counts_in_version_2() {
    let machine = Machine::new(8, 1)
        .with("/proc/self/cgroup", "0::/user.slice/app.scope")
        .with("/proc/self/mountinfo", V2)
        .with("/sys/fs/cgroup/user.slice/cpu.max", "200000 100000")
        .with("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000");
    check_quota(machine.clone(), Some((2.0, "/sys/fs/cgroup/user.slice")));
    let tighter = machine.with("/sys/fs/cgroup/user.slice/app.scope/cpu.max", "15000 10000");
    check_quota(tighter, Some((1.5, "/sys/fs/cgroup/user.slice/app.scope")));
}

#[test]
fn version_1_is_read_beside_version_2() {
    let machine = Machine::new(8, 1)
        .with("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,cpuacct:/docker/abc\n0::/")
        .with("/proc/self/mountinfo", &format!("{V2}\n{V1}"))
        .with("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1")
        .with("/sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000");
    check_quota(machine.clone(), None);
    let machine = machine
        .with("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "250000")
        .with("/sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000");
    check_quota(machine, Some((2.5, "/sys/fs/cgroup/cpu,cpuacct/docker")));
}

#[test]
fn a_container_sees_its_own_group_as_the_root_of_the_mount() {
    let inside = "33 31 0:30 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
    let machine = Machine::new(8, 1)
        .with("/proc/self/cgroup", "4:cpu:/docker/abc")
        .with("/proc/self/mountinfo", inside)
        .with("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")
        .with("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000");
    check_quota(machine, Some((1.0, "/sys/fs/cgroup/cpu")));
}

#[test]
fn garbled_groups_and_quotas_are_no_quota() {
    for groups in ["", "::", "0::/../../etc", "0::nonsense", "x", "0::/\u{0}"] {
        for quota in
            ["", "max", "0 0", "100000 0", "-5 100000", "9999999999999999999999 1", "1 2 3", "a b"]
        {
            let machine = Machine::new(2, 1)
                .with("/proc/self/cgroup", groups)
                .with("/proc/self/mountinfo", &format!("- - -\n\\\n{V2}\ncgroup2"))
                .with("/sys/fs/cgroup/cpu.max", quota)
                .with("/sys/fs/cgroup/../../etc/cpu.max", "1 1");
            check_quota(machine, None);
        }
    }
    let deep = format!("0::{}", "/x".repeat(100_000));
    check_quota(
        Machine::new(2, 1).with("/proc/self/cgroup", &deep).with("/proc/self/mountinfo", V2),
        None,
    );
}

#[test]
fn a_mount_point_with_a_blank_is_found() {
    let mount = "31 23 0:28 / /my\\040groups rw - cgroup2 none rw";
    let machine = Machine::new(4, 1)
        .with("/proc/self/cgroup", "0::/")
        .with("/proc/self/mountinfo", mount)
        .with("/my groups/cpu.max", "100000 100000");
    check_quota(machine, Some((1.0, "/my groups")));
}

/// Two P-cores with SMT (0-3), four E-cores (4-7), two low-power E-cores without L3 (8-9): an Intel 155U in small.
pub(crate) fn intel_hybrid() -> Machine {
    let mut machine = Machine::new(10, 1)
        .without("index3")
        .with("/sys/devices/cpu_core/cpus", "0-3")
        .with("/sys/devices/cpu_atom/cpus", "4-9");
    for id in 0..4 {
        machine.topology(id, "core_cpus_list", if id < 2 { "0-1" } else { "2-3" });
    }
    for id in 0..8 {
        machine.cache(id, 3, ["3", "Unified", "12288K", "0-7"]);
    }
    machine
}

#[test]
fn intel_low_power_cores_are_left_out() {
    check_threads(intel_hybrid(), 6, "one for each of 6 physical cores, without 2 low-power ones");
    let topology = intel_hybrid().topology_of();
    let classes = [CpuClass::Performance, CpuClass::Efficiency, CpuClass::LowPower];
    assert_eq!(classes.map(|class| topology.cores_of(class)), [2, 4, 2]);
}

#[test]
fn a_process_that_may_only_use_slow_cores_uses_them() {
    let reason = "one for each of 2 physical cores, within the affinity mask (2 of 10 CPUs)";
    check_threads(intel_hybrid().allowed("8-9"), 2, reason);
}

#[test]
fn little_arm_cores_are_left_out() {
    let mut machine = Machine::new(8, 1);
    for id in 0..8 {
        let capacity = if id < 4 { "280" } else { "1024" };
        machine.set(&format!("/sys/devices/system/cpu/cpu{id}/cpu_capacity"), capacity);
    }
    check_threads(machine, 4, "one for each of 4 physical cores, without 4 low-power ones");
}

#[test]
fn caches_are_listed_once_each() {
    let caches = Machine::new(2, 2).topology_of().caches;
    let facts: Vec<_> = caches.iter().map(|c| (c.level, c.bytes >> 10, c.cpus.clone())).collect();
    let expected = [
        (1, 32, vec![0, 2]),
        (1, 32, vec![1, 3]),
        (2, 1024, vec![0, 2]),
        (2, 1024, vec![1, 3]),
        (3, 32768, vec![0, 1, 2, 3]),
    ];
    assert_eq!(facts, expected);
}

#[test]
fn memory_nodes_and_memory_are_read() {
    let topology = Machine::new(4, 1)
        .with("/sys/devices/system/node/online", "0-1")
        .with("/sys/devices/system/node/node0/cpulist", "0-1")
        .with("/sys/devices/system/node/node1/cpulist", "2-3")
        .with("/proc/meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB")
        .topology_of();
    assert_eq!(
        topology.nodes,
        [Node { id: 0, cpus: vec![0, 1] }, Node { id: 1, cpus: vec![2, 3] }]
    );
    assert_eq!(topology.memory, Some(Memory { total: 1_024_000, available: 409_600 }));
}

#[test]
fn virtual_machines_are_recognised() {
    let kind = |machine: Machine| machine.topology_of().virtual_machine;
    let flagged = Machine::new(1, 1).with("/proc/cpuinfo", "flags\t\t: fpu hypervisor avx2");
    let kvm = flagged.clone().with("/sys/class/dmi/id/product_name", "KVM Virtual Machine");
    let wsl =
        flagged.clone().with("/proc/version", "Linux version 5.15.90.1-microsoft-standard-WSL2");
    let metal = Machine::new(1, 1).with("/sys/class/dmi/id/product_name", "ThinkPad X1");
    assert_eq!(kind(flagged), Some("unnamed hypervisor".to_owned()));
    assert_eq!(kind(kvm), Some("KVM Virtual Machine".to_owned()));
    assert_eq!(kind(wsl), Some("WSL2".to_owned()));
    assert_eq!(kind(metal), None);
}

#[test]
fn processors_are_counted_from_cpuinfo_where_sys_is_missing() {
    let cpuinfo =
        "processor\t: 0\nmodel name\t: A  B\u{7} C\nprocessor\t: 1\nprocessor\t: 99999999999\n";
    let topology = Machine::default().with("/proc/cpuinfo", cpuinfo).topology_of();
    assert_eq!((topology.cpus.len(), topology.model_name.as_deref()), (2, Some("A B C")));
}

#[test]
fn a_machine_without_topology_has_a_core_for_each_processor() {
    let machine = Machine::new(4, 2).without("/topology/").without("/cache/").allowed("0-5");
    let reason = "one for each of 6 physical cores, within the affinity mask (6 of 8 CPUs)";
    check_threads(machine, 6, reason);
}

#[test]
fn unknown_processors_are_used_up_to_eight() {
    let unknown = |count| {
        let machine = Machine::new(count, 1).topology_of();
        Topology { unknown: true, ..machine }.recommended_threads()
    };
    let many = unknown(20);
    let reason = "8 of 20 CPUs, whose cores are unknown";
    assert_eq!((many.threads, many.reason.as_str()), (8, reason));
    assert_eq!(unknown(6).threads, 6);
}

#[test]
fn memory_that_moves_between_nodes_is_noticed() {
    let moves = |text| {
        Machine::new(1, 1)
            .with("/proc/sys/kernel/numa_balancing", text)
            .topology_of()
            .numa_balancing
    };
    assert_eq!(["0", "1", "2", "x"].map(moves), [false, true, true, false]);
}

#[test]
fn lists_are_read_or_refused() {
    let check = |text: &str, expected: Option<&[usize]>| {
        assert_eq!(parse::cpu_list(text).as_deref(), expected, "{text:?}");
    };
    check("0-3,8,10-11\n", Some(&[0, 1, 2, 3, 8, 10, 11]));
    check("3,1,1-2", Some(&[1, 2, 3]));
    check("", Some(&[]));
    for garbled in
        ["3-1", "0-4294967295", "-", "0-", "a", "1-2-3", "+1", "18446744073709551616", "0x1"]
    {
        check(garbled, None);
    }
    check(&"0-65535,".repeat(1000), None);
}

#[test]
fn sizes_are_read_or_refused() {
    let check = |text: &str, expected| assert_eq!(parse::size(text), expected, "{text:?}");
    check("32K\n", Some(32 << 10));
    check("2M", Some(2 << 20));
    check("512", Some(512));
    for garbled in ["", "K", "-1K", "1X", "18446744073709551615G", "99999999999999999999"] {
        check(garbled, None);
    }
}

#[test]
fn any_text_in_any_file_gives_a_topology() {
    let machine = intel_hybrid().with("/proc/self/cgroup", "0::/").with("/proc/self/mountinfo", V2);
    for text in ["", "\u{0}", "-1", "4294967295", "0-65535", ",,,", "é-ü", ":::", " - ", "K"] {
        for path in machine.0.keys() {
            let topology = machine.clone().with(path, text).topology_of();
            assert!(topology.recommended_threads().threads >= 1 && topology.available() >= 1);
        }
    }
}

#[test]
fn this_machine_is_detected() {
    let topology = Topology::detect();
    assert!(!topology.cpus.is_empty() && !topology.allowed.is_empty());
    assert!((1..=topology.cpus.len()).contains(&topology.recommended_threads().threads));
}
