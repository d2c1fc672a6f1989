//! Where compute threads run and how they wait: flags, then OpenMP's variables.

use bitnet::{Numa, Order, Pinning, PlacementConfig, Places, WaitPolicy};
use bitnet_kernels::cpu::affinity;
use bitnet_kernels::cpu::topology::cpu_list;

use super::omp;

/// Where compute threads run
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PlacementArgs {
    /// Bind each compute thread to a CPU, one for each physical core first [default: as OMP_PROC_BIND and OMP_PLACES say]
    #[arg(long, conflicts_with = "no_pin", help_heading = THREADS)]
    pin: bool,
    /// Let the system move threads, whatever OMP_PROC_BIND and OMP_PLACES say
    #[arg(long, help_heading = THREADS)]
    no_pin: bool,
    /// Compute on these CPUs only, as 0,2-5
    #[arg(long, value_name = "LIST", value_parser = parse_cpus, help_heading = THREADS)]
    cpu_list: Option<CpuList>,
    /// Memory nodes: `distribute` threads over all, `isolate` them on one, or `off`
    #[arg(long, value_name = "MODE", default_value = "off", help_heading = THREADS)]
    numa: Numa,
    /// What threads without work do: `active` stays awake for 50 ms, `passive` sleeps at once, `balanced` sleeps after 0.2 ms, a
    /// number is microseconds [default: as OMP_WAIT_POLICY says, else balanced]
    #[arg(long, value_name = "POLICY", help_heading = THREADS)]
    wait_policy: Option<WaitPolicy>,
}

const THREADS: &str = "Threads";

/// The value of `--cpu-list`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuList(Vec<usize>);

fn parse_cpus(text: &str) -> Result<CpuList, &'static str> {
    let cpus = cpu_list(text).filter(|cpus| !cpus.is_empty());
    cpus.map(CpuList).ok_or("expected CPU numbers and ranges, as 0,2-5")
}

/// Where threads run, and who said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub placement: PlacementConfig,
    /// The flag or variable that decides whether threads are bound.
    pub pin_rule: &'static str,
    pub wait: WaitPolicy,
    pub wait_rule: &'static str,
    /// Variables whose values do nothing.
    pub warnings: Vec<String>,
}

const DEFAULT: &str = "default";

impl PlacementArgs {
    /// Decides. `env` gives a variable's value.
    pub fn decide(&self, env: &dyn Fn(&str) -> Option<String>) -> Wanted {
        let mut warnings = Vec::new();
        let (pin, pin_rule) = self.pinning(env, &mut warnings);
        let (wait, wait_rule) = self.wait(env, &mut warnings);
        let cpus = self.cpu_list.as_ref().map_or_else(Vec::new, |list| list.0.clone());
        let placement = PlacementConfig { pin, cpus, numa: self.numa };
        Wanted { placement, pin_rule, wait, wait_rule, warnings }
    }

    fn pinning(
        &self,
        env: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> (Option<Pinning>, &'static str) {
        if self.no_pin {
            return (None, "--no-pin");
        }
        // A variable may be meant for other programs, so it asks for nothing where nothing can be had.
        if !self.pin && !affinity::SUPPORTED {
            return (None, DEFAULT);
        }
        let mut known = |name, parse: &dyn Fn(&str) -> Result<Bind, String>| {
            let value = env(name).filter(|value| !value.trim().is_empty())?;
            match parse(&value) {
                Ok(bind) => Some(bind),
                Err(reason) => {
                    warnings.push(format!("{name}={value}: unsupported value ({reason}), ignored"));
                    None
                }
            }
        };
        let bind = known("OMP_PROC_BIND", &|text| omp::proc_bind(text).map(Bind::Order));
        let places = known("OMP_PLACES", &|text| omp::places(text).map(Bind::Places));
        let (asked, rule) = match (&bind, &places) {
            _ if self.pin => (true, "--pin"),
            (Some(Bind::Order(None)), _) => (false, "OMP_PROC_BIND"),
            (Some(_), _) => (true, "OMP_PROC_BIND"),
            (None, Some(_)) => (true, "OMP_PLACES"),
            (None, None) => (false, DEFAULT),
        };
        let order = match bind {
            Some(Bind::Order(order)) => order.unwrap_or_default(),
            _ => Order::default(),
        };
        let places = match places {
            Some(Bind::Places(places)) => places,
            _ => Places::default(),
        };
        (asked.then_some(Pinning { places, order }), rule)
    }

    fn wait(
        &self,
        env: &dyn Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> (WaitPolicy, &'static str) {
        const NAME: &str = "OMP_WAIT_POLICY";
        if let Some(policy) = self.wait_policy {
            return (policy, "--wait-policy");
        }
        let value = env(NAME).unwrap_or_default();
        match value.trim().to_ascii_lowercase().as_str() {
            "" => (WaitPolicy::default(), DEFAULT),
            "active" => (WaitPolicy::Active, NAME),
            "passive" => (WaitPolicy::Passive, NAME),
            _ => {
                let known = "it knows active and passive";
                warnings.push(format!("{NAME}={value}: unsupported value ({known}), ignored"));
                (WaitPolicy::default(), DEFAULT)
            }
        }
    }
}

/// What a variable says: whether and in which order to bind, or to what.
enum Bind {
    Order(Option<Order>),
    Places(Places),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(args: &PlacementArgs, env: &[(&str, &str)]) -> Wanted {
        args.decide(&|name| Some(env.iter().find(|(n, _)| *n == name)?.1.to_owned()))
    }

    #[track_caller]
    fn check(args: &PlacementArgs, env: &[(&str, &str)], pin: Option<Pinning>, rule: &str) {
        let wanted = wanted(args, env);
        assert_eq!((wanted.placement.pin, wanted.pin_rule), (pin, rule));
        assert_eq!(wanted.warnings, [""; 0]);
    }

    fn close(places: Places) -> Option<Pinning> {
        Some(Pinning { places, order: Order::Close })
    }

    #[test]
    fn flags_win_over_variables() {
        let (pin, no_pin) = (
            PlacementArgs { pin: true, ..PlacementArgs::default() },
            PlacementArgs { no_pin: true, ..PlacementArgs::default() },
        );
        let none = PlacementArgs::default();
        check(&none, &[], None, "default");
        check(&pin, &[("OMP_PROC_BIND", "false")], close(Places::Threads), "--pin");
        check(&pin, &[("OMP_PLACES", "cores")], close(Places::Cores), "--pin");
        check(&no_pin, &[("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores")], None, "--no-pin");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn openmps_variables_bind_threads() {
        let none = PlacementArgs::default();
        check(&none, &[("OMP_PROC_BIND", "TRUE")], close(Places::Threads), "OMP_PROC_BIND");
        check(&none, &[("OMP_PROC_BIND", "false"), ("OMP_PLACES", "cores")], None, "OMP_PROC_BIND");
        let spread = Some(Pinning { places: Places::Cores, order: Order::Spread });
        let both = [("OMP_PROC_BIND", "spread,close"), ("OMP_PLACES", "cores")];
        check(&none, &both, spread, "OMP_PROC_BIND");
        check(&none, &[("OMP_PLACES", "sockets")], close(Places::Sockets), "OMP_PLACES");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn values_that_mean_nothing_here_are_warnings() {
        for (name, value) in [
            ("OMP_PROC_BIND", "primary"),
            ("OMP_PROC_BIND", "yes"),
            ("OMP_PLACES", "planets"),
            ("OMP_PLACES", "{0:4"),
            ("OMP_WAIT_POLICY", "lazy"),
        ] {
            let wanted = wanted(&PlacementArgs::default(), &[(name, value)]);
            assert_eq!(wanted.placement.pin, None);
            let start = format!("{name}={value}: unsupported value (");
            assert!(wanted.warnings[0].starts_with(&start), "{:?}", wanted.warnings);
        }
    }

    #[test]
    fn the_wait_policy_is_the_flags_or_openmps() {
        let flag =
            PlacementArgs { wait_policy: Some(WaitPolicy::Micros(5)), ..PlacementArgs::default() };
        let waits = |args, env: &[(&str, &str)]| {
            let wanted = wanted(args, env);
            (wanted.wait, wanted.wait_rule)
        };
        let passive = [("OMP_WAIT_POLICY", "PASSIVE")];
        assert_eq!(waits(&flag, &passive), (WaitPolicy::Micros(5), "--wait-policy"));
        let none = PlacementArgs::default();
        assert_eq!(waits(&none, &passive), (WaitPolicy::Passive, "OMP_WAIT_POLICY"));
        let active = [("OMP_WAIT_POLICY", "active")];
        assert_eq!(waits(&none, &active), (WaitPolicy::Active, "OMP_WAIT_POLICY"));
        assert_eq!(waits(&none, &[]), (WaitPolicy::Balanced, "default"));
    }

    #[test]
    fn lists_of_cpus_are_read_or_refused() {
        assert_eq!(parse_cpus("0,2-5"), Ok(CpuList(vec![0, 2, 3, 4, 5])));
        for bad in ["", ",", "a", "3-1", "0-", "1.5", "0-99999999"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
