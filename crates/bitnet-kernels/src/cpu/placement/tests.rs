use super::super::topology::tests::{Machine, intel_hybrid};
use super::*;

/// Four cores with two siblings each (0-3, 4-7) on each of two sockets, nodes and last-level caches.
fn two_sockets() -> Topology {
    let mut machine = Machine::new(8, 2)
        .with("/sys/devices/system/node/online", "0-1")
        .with("/sys/devices/system/node/node0/cpulist", "0-3,8-11")
        .with("/sys/devices/system/node/node1/cpulist", "4-7,12-15");
    for id in 0..16 {
        let second = id % 8 >= 4;
        machine.topology(id, "physical_package_id", if second { "1" } else { "0" });
        let cpus = if second { "4-7,12-15" } else { "0-3,8-11" };
        machine.cache(id, 3, ["3", "Unified", "32768K", cpus]);
    }
    machine.topology_of()
}

fn pinned(places: Places, order: Order) -> PlacementConfig {
    PlacementConfig { pin: Some(Pinning { places, order }), ..PlacementConfig::default() }
}

fn place(
    config: &PlacementConfig,
    topology: &Topology,
    threads: usize,
) -> Result<Placement, PlacementError> {
    Placement::new(config, &config.narrow(topology, Some(5))?, threads)
}

#[track_caller]
fn check(config: &PlacementConfig, topology: &Topology, expected: &[&str]) {
    let placement = place(config, topology, expected.len()).unwrap();
    let found: Vec<_> = placement.places.iter().map(|place| ranges(place)).collect();
    assert_eq!(found, expected, "{}", placement.rule);
}

#[test]
fn nothing_is_bound_unless_asked_for() {
    let placement = place(&PlacementConfig::default(), &two_sockets(), 4).unwrap();
    assert!(placement.places.is_empty() && placement.cpus().is_empty());
    assert_eq!(placement.rule, "not bound: the system chooses");
}

#[test]
fn one_thread_for_each_core_then_its_siblings() {
    let machine = Machine::new(2, 2).topology_of(); // cores 0+2 and 1+3
    let config = pinned(Places::Threads, Order::Close);
    check(&config, &machine, &["0", "1", "2", "3", "0"]);
    check(&config, &two_sockets(), &["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
}

#[test]
fn fast_cores_come_before_slow_ones_and_low_power_ones_are_last() {
    let order = ["0", "2", "4", "5", "6", "7", "1", "3", "8", "9"];
    check(&pinned(Places::Threads, Order::Close), &intel_hybrid().topology_of(), &order);
    // Two threads stay on the fast cores even when they are to be far apart.
    check(&pinned(Places::Threads, Order::Spread), &intel_hybrid().topology_of(), &["0", "2"]);
    let cores = ["0-1", "2-3", "4", "5", "6", "7", "8", "9", "0-1"];
    check(&pinned(Places::Cores, Order::Close), &intel_hybrid().topology_of(), &cores);
}

#[test]
fn spread_takes_distant_places() {
    let machine = two_sockets();
    check(&pinned(Places::Threads, Order::Spread), &machine, &["0", "4"]);
    check(&pinned(Places::Threads, Order::Spread), &machine, &["0", "2", "4", "6"]);
    check(&pinned(Places::Cores, Order::Spread), &machine, &["0,8", "4,12"]);
}

#[test]
fn places_are_cores_caches_sockets_nodes_or_a_list() {
    let machine = two_sockets();
    let close = |places| pinned(places, Order::Close);
    let halves = ["0-3,8-11", "4-7,12-15", "0-3,8-11"];
    check(&close(Places::Cores), &machine, &["0,8", "1,9", "2,10"]);
    check(&close(Places::LastLevelCaches), &machine, &halves);
    check(&close(Places::Sockets), &machine, &halves);
    check(&close(Places::Nodes), &machine, &halves);
    let list = Places::List(vec![vec![3, 4], vec![99], vec![7]]);
    check(&close(list), &machine, &["3-4", "7", "3-4"]);
}

#[test]
fn the_affinity_mask_is_never_left() {
    let machine = Machine::new(4, 2).allowed("2-3,6").topology_of();
    check(&pinned(Places::Threads, Order::Close), &machine, &["2", "3", "6", "2"]);
    check(&pinned(Places::Cores, Order::Close), &machine, &["2,6", "3"]);
    let outside = pinned(Places::List(vec![vec![0], vec![1]]), Order::Close);
    let error = place(&outside, &machine, 2).unwrap_err();
    assert_eq!(error.to_string(), "none of the places has a CPU that this process may use: 2-3,6");
}

#[test]
fn a_machine_without_topology_takes_its_processors_in_order() {
    let machine = Machine::new(4, 1).without("/topology/").without("/cache/").topology_of();
    check(&pinned(Places::Threads, Order::Close), &machine, &["0", "1", "2", "3", "0"]);
    check(&pinned(Places::Sockets, Order::Close), &machine, &["0-3"]);
    let error = place(&pinned(Places::Nodes, Order::Close), &machine, 1).unwrap_err();
    assert_eq!(error, PlacementError::NoPlace { allowed: vec![0, 1, 2, 3] });
}

#[test]
fn a_list_of_processors_holds_all_threads_together_or_one_each() {
    let machine = Machine::new(8, 1).topology_of();
    let list = PlacementConfig { cpus: vec![5, 2, 3, 2], ..PlacementConfig::default() };
    check(&list, &machine, &["2-3,5", "2-3,5"]);
    let pin = Some(Pinning::default());
    check(&PlacementConfig { pin, ..list.clone() }, &machine, &["2", "3", "5", "2"]);
    let narrow = list.narrow(&machine, None).unwrap();
    let best = narrow.recommended_threads();
    let reason = "one for each of 3 physical cores, within the CPU list (3 of 8 CPUs)";
    assert_eq!((best.threads, best.reason.as_str()), (3, reason));
}

#[test]
fn a_processor_outside_the_mask_is_an_error() {
    let machine = Machine::new(8, 1).allowed("0-3").topology_of();
    let config = PlacementConfig { cpus: vec![3, 4], ..PlacementConfig::default() };
    let error = config.narrow(&machine, None).unwrap_err();
    assert_eq!(error.to_string(), "CPU 4 is not among those that this process may use: 0-3");
}

#[test]
fn isolated_threads_stay_on_one_node() {
    let machine = two_sockets();
    let config = PlacementConfig { numa: Numa::Isolate, ..PlacementConfig::default() };
    check(&config, &machine, &["4-7,12-15", "4-7,12-15"]); // `place` says that the program runs on CPU 5
    let reason = "one for each of 4 physical cores, within memory node 1 (8 of 16 CPUs)";
    let narrow = config.narrow(&machine, Some(5)).unwrap();
    assert_eq!(narrow.recommended_threads().reason, reason);
    assert_eq!(config.narrow(&machine, None).unwrap().narrowed_by.unwrap(), "memory node 0");
    let pin = Some(Pinning::default());
    check(&PlacementConfig { pin, ..config }, &machine, &["4", "5", "6", "7", "12"]);
}

#[test]
fn distributed_threads_are_even_over_nodes() {
    let machine = two_sockets();
    let config = PlacementConfig { numa: Numa::Distribute, ..PlacementConfig::default() };
    check(&config, &machine, &["0-3,8-11", "0-3,8-11", "4-7,12-15"]);
    let pin = Some(Pinning::default());
    check(&PlacementConfig { pin, ..config.clone() }, &machine, &["0", "1", "4", "5"]);
    // One node has a quarter of the processors that may be used, and gets a quarter of the threads.
    let uneven = Topology { allowed: vec![0, 1, 2, 3, 8, 9, 4, 12], ..machine };
    let uneven = Topology {
        allowed: {
            let mut a = uneven.allowed.clone();
            a.sort();
            a
        },
        ..uneven
    };
    let node0 = "0-3,8-9";
    check(&config, &uneven, &[node0, node0, node0, "4,12"]);
}

#[test]
fn one_node_leaves_nothing_to_choose_and_says_so() {
    let machine = Machine::new(4, 1)
        .with("/sys/devices/system/node/online", "0")
        .with("/sys/devices/system/node/node0/cpulist", "0-3")
        .topology_of();
    for numa in [Numa::Distribute, Numa::Isolate] {
        let config = PlacementConfig { numa, ..PlacementConfig::default() };
        let placement = place(&config, &machine, 2).unwrap();
        assert_eq!(placement.warnings.len(), 1, "{numa:?}");
    }
}

#[test]
fn numa_modes_have_names() {
    let modes = ["off", "distribute", "isolate"].map(|name| name.parse::<Numa>().unwrap());
    assert_eq!(modes, [Numa::Off, Numa::Distribute, Numa::Isolate]);
    assert!(Numa::from_str("mirror").is_err());
}

#[test]
fn runs_of_numbers_are_shortened() {
    assert_eq!([ranges(&[0, 1, 2, 3, 8]), ranges(&[5]), ranges(&[])], ["0-3,8", "5", ""]);
}
