//! What else happened on the machine during a measurement: other processes, the clock, throttling.

use serde::Serialize;

/// The machine during a measurement, as far as the system tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conditions {
    /// Processors that other processes kept busy, on average.
    pub other_processes: Option<f64>,
    /// Processors that the hypervisor gave to other machines, on average.
    pub stolen: Option<f64>,
    /// The clock between the runs, over all processors.
    pub mhz: Option<Megahertz>,
    /// Times that a processor slowed itself down because it was hot.
    pub throttled: Option<u64>,
}

/// Clocks that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Megahertz {
    /// The slowest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The fastest.
    pub max: f64,
}

impl Megahertz {
    fn of(clocks: &[f64]) -> Option<Self> {
        let min = clocks.iter().copied().reduce(f64::min)?;
        let max = clocks.iter().copied().reduce(f64::max)?;
        Some(Self { min, max, mean: clocks.iter().sum::<f64>() / clocks.len() as f64 })
    }
}

/// Files of the system by path, `None` where there is no such file.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Looks at the machine from the start of a measurement to its end.
pub(super) struct Watch<'a> {
    read: Read<'a>,
    processors: usize,
    ticks: Option<Ticks>,
    throttled: Option<u64>,
    clocks: Vec<f64>,
}

impl<'a> Watch<'a> {
    /// Begins, on the files of this machine.
    pub fn begin(processors: usize) -> Watch<'static> {
        Watch::on(processors, &|path| std::fs::read_to_string(path).ok())
    }

    fn on(processors: usize, read: Read<'a>) -> Self {
        let mut watch = Self { read, processors, ticks: None, throttled: None, clocks: Vec::new() };
        watch.ticks = Ticks::now(read);
        watch.throttled = watch.throttle_count();
        watch
    }

    /// Notes the clock, which falls soon after the work ends.
    pub fn note_clock(&mut self) {
        let cpuinfo = (self.read)("/proc/cpuinfo").unwrap_or_default();
        let clock = |line: &str| {
            line.strip_prefix("cpu MHz")?.split(':').nth(1)?.trim().parse::<f64>().ok()
        };
        let before = self.clocks.len();
        self.clocks.extend(cpuinfo.lines().filter_map(clock));
        if self.clocks.len() == before {
            let clock = |cpu| {
                let path = format!("/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq");
                Some((self.read)(&path)?.trim().parse::<f64>().ok()? / 1e3)
            };
            self.clocks.extend((0..self.processors).filter_map(clock));
        }
    }

    /// What happened since the beginning.
    pub fn end(self) -> Conditions {
        let passed = Ticks::now(self.read).zip(self.ticks).and_then(|(now, then)| now.since(then));
        let processors = |share: f64| share * self.processors as f64;
        Conditions {
            other_processes: passed.as_ref().map(|passed| processors(passed.others)),
            stolen: passed.as_ref().map(|passed| processors(passed.stolen)),
            mhz: Megahertz::of(&self.clocks),
            throttled: self
                .throttle_count()
                .zip(self.throttled)
                .map(|(now, then)| now.saturating_sub(then)),
        }
    }

    fn throttle_count(&self) -> Option<u64> {
        let count = |cpu, name| -> Option<u64> {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/{name}");
            (self.read)(&path)?.trim().parse().ok()
        };
        let counts = (0..self.processors).flat_map(|cpu| {
            ["core_throttle_count", "package_throttle_count"].map(|name| count(cpu, name))
        });
        counts.flatten().reduce(|a, b| a.saturating_add(b))
    }
}

/// Processor time since the machine started, in the system's ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    busy: u64,
    stolen: u64,
    own: u64,
}

/// Shares of all processors' time.
struct Passed {
    others: f64,
    stolen: f64,
}

impl Ticks {
    fn now(read: Read<'_>) -> Option<Self> {
        let (machine, process) = (read("/proc/stat")?, read("/proc/self/stat")?);
        let fields = machine.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let fields: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let &[user, nice, system, idle, iowait, irq, softirq, stolen] = &fields[..] else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        // The name in parentheses may hold anything; user and system time are fields 14 and 15 of all.
        let rest: Vec<&str> = process.rsplit_once(')')?.1.split_whitespace().collect();
        let own = rest.get(11)?.parse::<u64>().ok()? + rest.get(12)?.parse::<u64>().ok()?;
        Some(Self { all: busy + idle + iowait + stolen, busy, stolen, own })
    }

    fn since(self, then: Self) -> Option<Passed> {
        let passed = |now: u64, then: u64| now.saturating_sub(then) as f64;
        let all = passed(self.all, then.all);
        let others = passed(self.busy, then.busy) - passed(self.own, then.own);
        let share = |ticks: f64| ticks.max(0.0) / all;
        (all > 0.0).then(|| Passed {
            others: share(others),
            stolen: share(passed(self.stolen, then.stolen)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_others_used_is_what_was_busy_and_not_our_own() {
        let later = Cell::new(false);
        let read = |path: &str| {
            let text = match (path, later.get()) {
                ("/proc/stat", false) => "cpu  100 0 50 1000 10 0 0 5 7 0\ncpu0 …",
                ("/proc/stat", true) => "cpu  220 0 60 1050 10 0 5 20 7 0\ncpu0 …",
                ("/proc/self/stat", false) => "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 40 10 0 0 20",
                ("/proc/self/stat", true) => "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 125 10 0 0 20",
                ("/proc/cpuinfo", _) => "cpu MHz\t\t: 2000.5\nflags : x\ncpu MHz\t\t: 3000.5\n",
                ("/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", false) => "3",
                ("/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", true) => {
                    "5\n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        };
        let mut watch = Watch::on(2, &read);
        later.set(true);
        watch.note_clock();
        let found = watch.end();
        // 200 ticks on two processors: 135 busy, 85 of them our own, and 15 stolen.
        assert_eq!(found.other_processes, Some(0.5));
        assert_eq!(found.stolen, Some(0.15));
        assert_eq!(found.mhz, Some(Megahertz { min: 2000.5, mean: 2500.5, max: 3000.5 }));
        assert_eq!(found.throttled, Some(2));
    }

    #[test]
    fn a_machine_that_tells_nothing_is_no_error() {
        let mut watch = Watch::on(2, &|_| None);
        watch.note_clock();
        assert_eq!(watch.end(), Conditions::default());
        let garbled = |_: &str| Some("cpu x y".to_owned());
        assert_eq!(Watch::on(1, &garbled).end(), Conditions::default());
    }

    #[test]
    fn the_clock_is_also_found_in_sysfs() {
        let read = |path: &str| path.ends_with("scaling_cur_freq").then(|| "1800000\n".to_owned());
        let mut watch = Watch::on(3, &read);
        watch.note_clock();
        let mhz = watch.end().mhz;
        assert_eq!(mhz, Some(Megahertz { min: 1800.0, mean: 1800.0, max: 1800.0 }));
    }
}
