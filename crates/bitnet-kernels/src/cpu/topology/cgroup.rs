//! Limits on processor time by Linux control groups, versions 1 and 2.
//!
//! A limit anywhere between the process's group and the root of what it can see holds, so all are read and the tightest
//! counts. Inside a container that root is usually the container's own group.

use std::fmt;

/// A limit on processor time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Microseconds of processor time in each period.
    pub quota_us: u64,
    /// The period, in microseconds.
    pub period_us: u64,
    /// The folder of the group that sets it.
    pub group: String,
}

impl Quota {
    /// The limit as a number of processors, such as 1.5.
    pub fn cpus(&self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus = (self.cpus() * 100.0).round() / 100.0;
        write!(f, "control group quota of {cpus} CPU{}", if cpus == 1.0 { "" } else { "s" })
    }
}

/// The tightest quota over this process.
pub(super) fn quota(read: &dyn Fn(&str) -> Option<String>) -> Option<Quota> {
    let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
    let tightest = |a: Quota, b: Quota| {
        let product = |x: &Quota, y: &Quota| u128::from(x.quota_us) * u128::from(y.period_us);
        if product(&a, &b) <= product(&b, &a) { a } else { b }
    };
    mounts
        .lines()
        .filter_map(Mount::parse)
        .flat_map(|mount| {
            mount.folders(&groups).into_iter().map(move |folder| (mount.version, folder))
        })
        .filter_map(|(version, folder)| {
            let (quota_us, period_us) = match version {
                Version::One => v1(&folder, read)?,
                Version::Two => v2(&read(&format!("{folder}/cpu.max"))?)?,
            };
            Some(Quota { quota_us, period_us, group: folder })
        })
        .reduce(tightest)
}

fn v1(folder: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<(u64, u64)> {
    let quota = read(&format!("{folder}/cpu.cfs_quota_us"))?; // -1 is no limit
    let period = read(&format!("{folder}/cpu.cfs_period_us"))?;
    limit(&quota, &period)
}

/// `150000 100000`, or `max 100000` for no limit.
fn v2(text: &str) -> Option<(u64, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    limit(quota, period)
}

fn limit(quota: &str, period: &str) -> Option<(u64, u64)> {
    let parse = |text: &str| text.trim().parse().ok().filter(|&us: &u64| us > 0);
    Some((parse(quota)?, parse(period)?))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A mounted hierarchy that can limit processor time.
struct Mount {
    version: Version,
    /// The group that is mounted, `/` for all.
    root: String,
    point: String,
}

impl Mount {
    /// A line of `mountinfo`: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options.
    fn parse(line: &str) -> Option<Self> {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescape(place.next()?), unescape(place.next()?));
        let mut kind = kind.split(' ');
        let version = match (kind.next()?, kind.nth(1)?) {
            ("cgroup2", _) => Version::Two,
            ("cgroup", options) if options.split(',').any(|option| option == "cpu") => Version::One,
            _ => return None,
        };
        Some(Self { version, root, point })
    }

    /// The folders of the process's group and its parents, as far as they are mounted here.
    fn folders(&self, groups: &str) -> Vec<String> {
        let inside = groups.lines().find_map(|line| self.group(line)).unwrap_or_default();
        let mut folders = vec![self.point.clone()];
        for part in inside.split('/').filter(|part| !part.is_empty()) {
            let parent = folders.last().expect("the mount point is the first");
            folders.push(format!("{}/{part}", parent.trim_end_matches('/')));
        }
        folders
    }

    /// The group below this mount, from a line `number:controllers:path`. A path outside what is mounted (seen in a
    /// container that shares the host's names) cannot be followed.
    fn group<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match self.version {
            Version::One => controllers.split(',').any(|name| name == "cpu"),
            Version::Two => controllers.is_empty(),
        };
        let inside = path.strip_prefix(self.root.trim_end_matches('/'))?;
        let below = inside.is_empty() || inside.starts_with('/');
        let followed = below && inside.len() <= 4096 && !inside.split('/').any(|part| part == "..");
        (ours && followed).then_some(inside)
    }
}

/// Blanks and backslashes in paths are written as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        (out, rest) = match code.filter(u8::is_ascii) {
            Some(code) => (out + &char::from(code).to_string(), &after[3..]),
            None => (out + "\\", after),
        };
    }
    out + rest
}
