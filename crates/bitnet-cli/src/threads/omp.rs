//! OpenMP's ways to write where threads run (OpenMP 5.2, 21.2 and 21.1.6).

use bitnet::{Order, Places};

/// Places and CPUs in one list: more than any machine has, and few enough to write down.
const MAX: usize = 1 << 16;

/// `OMP_PROC_BIND`: None for `false`. Of a list, one for each level of nesting, the first is meant for us.
pub fn proc_bind(text: &str) -> Result<Option<Order>, String> {
    let first = text.split(',').next().unwrap_or("").trim().to_ascii_lowercase();
    match first.as_str() {
        "false" => Ok(None),
        "true" | "close" => Ok(Some(Order::Close)),
        "spread" => Ok(Some(Order::Spread)),
        "primary" | "master" => Err("all threads in one place would take turns".to_owned()),
        _ => Err("it knows true, false, close and spread".to_owned()),
    }
}

/// `OMP_PLACES`: a name, or sets such as `{0:4},{4:4}` or `{0,1}:4:2`.
pub fn places(text: &str) -> Result<Places, String> {
    let text: String = text.split_whitespace().collect();
    match text.to_ascii_lowercase().as_str() {
        "threads" => Ok(Places::Threads),
        "cores" => Ok(Places::Cores),
        "ll_caches" => Ok(Places::LastLevelCaches),
        "sockets" => Ok(Places::Sockets),
        "numa_domains" => Ok(Places::Nodes),
        name if !name.starts_with('{') => {
            Err("it knows threads, cores, ll_caches, sockets, numa_domains and sets as {0:4},{4:4}"
                .to_owned())
        }
        list => sets(list)
            .map(Places::List)
            .ok_or_else(|| "expected sets of CPUs as {0:4},{4:4}".to_owned()),
    }
}

fn sets(mut text: &str) -> Option<Vec<Vec<usize>>> {
    let mut sets: Vec<Vec<usize>> = Vec::new();
    let mut cpus = 0;
    loop {
        let (inside, after) = text.strip_prefix('{')?.split_once('}')?;
        let set = set(inside)?;
        let (repeat, next) = match after.find('{') {
            Some(brace) => (after[..brace].strip_suffix(',')?, &after[brace..]),
            None => (after, ""),
        };
        let (count, stride) = match repeat {
            "" => (1, 0),
            repeat => {
                let (count, stride) = counted(repeat.strip_prefix(':')?)?;
                // Without a stride the next set begins where this one ends.
                (count, stride.unwrap_or(set.len()))
            }
        };
        cpus += count * set.len();
        if cpus > MAX {
            return None;
        }
        for index in 0..count {
            let offset = index.checked_mul(stride)?;
            let moved = set.iter().map(|cpu| cpu.checked_add(offset).filter(|cpu| *cpu < MAX));
            sets.push(moved.collect::<Option<_>>()?);
        }
        match next {
            "" => return Some(sets),
            next => text = next,
        }
    }
}

/// `0,3,5` or `0:4` or `0:4:2`, mixed.
fn set(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, count, stride) = match part.split_once(':') {
            None => (number(part)?, 1, 1),
            Some((first, rest)) => {
                let (count, stride) = counted(rest)?;
                (number(first)?, count, stride.unwrap_or(1))
            }
        };
        let last = first.checked_add(stride.checked_mul(count - 1)?)?;
        if last >= MAX || cpus.len() + count > MAX {
            return None;
        }
        cpus.extend((0..count).map(|index| first + index * stride));
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// `4` or `4:2`: how many, at least one, and how far apart.
fn counted(text: &str) -> Option<(usize, Option<usize>)> {
    let (count, stride) = match text.split_once(':') {
        None => (number(text)?, None),
        Some((count, stride)) => (number(count)?, Some(number(stride)?)),
    };
    ((1..=MAX).contains(&count)).then_some((count, stride))
}

fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&[usize]]) {
        let expected: Vec<_> = expected.iter().map(|set| set.to_vec()).collect();
        assert_eq!(places(text), Ok(Places::List(expected)));
    }

    #[test]
    fn names_are_known_in_any_case() {
        assert_eq!(places("cores"), Ok(Places::Cores));
        assert_eq!(places(" THREADS "), Ok(Places::Threads));
        assert_eq!(places("sockets"), Ok(Places::Sockets));
        assert_eq!(places("ll_caches"), Ok(Places::LastLevelCaches));
        assert_eq!(places("numa_domains"), Ok(Places::Nodes));
    }

    #[test]
    fn sets_are_written_out() {
        check("{0:4},{4:4}", &[&[0, 1, 2, 3], &[4, 5, 6, 7]]);
        check("{0, 1, 2}", &[&[0, 1, 2]]);
        check("{0:3:2},{7}", &[&[0, 2, 4], &[7]]);
        check("{0:2}:3", &[&[0, 1], &[2, 3], &[4, 5]]);
        check("{0:2}:2:4,{9}", &[&[0, 1], &[4, 5], &[9]]);
        check("{3,1,3}", &[&[1, 3]]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for bad in [
            "",
            "0",
            "{",
            "{}",
            "{0",
            "{0}{1}",
            "{0},",
            ",{0}",
            "{a}",
            "{-1}",
            "{0:0}",
            "{0:2}:0",
            "{0:1:}",
            "!{0}",
            "cores(4)",
            "{0:99999999}",
            "{0:65536}:65536",
            "{18446744073709551615:2}",
            "{0:2:18446744073709551615}",
            "{0}:2:18446744073709551615",
        ] {
            assert!(places(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn binding_is_off_close_or_spread() {
        assert_eq!(proc_bind("False"), Ok(None));
        assert_eq!(proc_bind("true"), Ok(Some(Order::Close)));
        assert_eq!(proc_bind("spread, close"), Ok(Some(Order::Spread)));
        for bad in ["primary", "master", "1", ",true"] {
            assert!(proc_bind(bad).is_err(), "{bad}");
        }
    }
}
