//! Where packed weights are kept between loads.

use std::ffi::OsString;
use std::path::PathBuf;

use bitnet::PackedCache;
use clap::ArgAction;

use crate::failure::Failure;

/// Whether and where packed weights are kept
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct CacheArgs {
    #[command(flatten)]
    place: CachePlace,
    /// Pack weights at each load, and write nothing, whatever BITNET_CACHE_DIR says
    #[arg(long, action = ArgAction::SetTrue, conflicts_with_all = ["cache_dir", "cache_size"])]
    no_cache: bool,
}

/// Where packed weights are kept, and how many
#[derive(clap::Args)]
pub struct CachePlace {
    /// Where packed weights are kept, so that later loads take a tenth of the time [default: as BITNET_CACHE_DIR says, else bitnet
    /// in the user's cache folder, for large models]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What all packed weights together may take on the disk, such as 500M or 2.5G, or `unlimited`; those that were not used
    /// for the longest time go first [default: as BITNET_CACHE_SIZE says, else 10G]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache_size: Option<u64>,
}

/// A variable's value.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl CacheArgs {
    /// As the library wants it.
    pub fn config(&self, env: Env<'_>) -> Result<Option<PackedCache>, Failure> {
        if self.no_cache { Ok(None) } else { self.place.config(env) }
    }

    /// The flag that was given, for a model that is never kept.
    pub fn idle(&self) -> Option<&'static str> {
        let dir = self.place.cache_dir.is_some().then_some("--cache-dir");
        dir.or(self.place.cache_size.is_some().then_some("--cache-size"))
    }
}

impl CachePlace {
    /// As the library wants it; none where there is no folder. A folder that was asked for is for small models too.
    pub fn config(&self, env: Env<'_>) -> Result<Option<PackedCache>, Failure> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let given = self.cache_dir.clone().or_else(|| set("BITNET_CACHE_DIR").map(PathBuf::from));
        let cache = match given {
            Some(folder) => Some(PackedCache { min_bytes: 0, ..PackedCache::new(folder) }),
            None => folder(env).map(PackedCache::new),
        };
        let bytes = match (self.cache_size, set("BITNET_CACHE_SIZE")) {
            (None, Some(value)) => Some(size_of_variable(&value.to_string_lossy())?),
            (given, _) => given,
        };
        Ok(cache.map(|cache| match bytes {
            Some(max_bytes) => PackedCache { max_bytes, ..cache },
            None => cache,
        }))
    }
}

/// The process's environment, for [`CachePlace::config`].
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn size_of_variable(value: &str) -> Result<u64, Failure> {
    size(value).map_err(|expected| {
        Failure::input(format!("BITNET_CACHE_SIZE={value} is no size: {expected}"))
            .hint("set it to one, unset it, or give --cache-size")
    })
}

/// Reads `500M`, `2.5 GiB`, `unlimited`; powers of 1024 all.
fn size(text: &str) -> Result<u64, String> {
    if text.trim() == "unlimited" {
        return Ok(u64::MAX);
    }
    let wrong = || "expected a size such as 500M or 2.5G, or `unlimited`".to_owned();
    let upper = text.trim().to_ascii_uppercase();
    let end = upper.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = upper.split_at(end);
    let power = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" if unit == "B" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = number * 1024_f64.powi(power);
    if !(bytes.is_finite() && number > 0.0) {
        return Err(format!("{}; --no-cache keeps nothing", wrong()));
    }
    Ok(bytes as u64)
}

/// The folder that the system has for such things; none if there is no home either.
pub fn folder(env: Env<'_>) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let system = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        set("HOME").map(|home| home.join("Library/Caches"))
    } else {
        set("HOME").map(|home| home.join(".cache"))
    };
    // The specification says that a relative path here is to be ignored.
    let xdg = set("XDG_CACHE_HOME").filter(|folder| folder.is_absolute());
    Some(xdg.or(system)?.join("bitnet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_folder_is_the_users() {
        let of = |variables: &[(&str, &str)]| {
            folder(&|name| Some(variables.iter().find(|(n, _)| *n == name)?.1.into()))
        };
        let home = ("HOME", "/home/me");
        assert_eq!(of(&[home]), Some("/home/me/.cache/bitnet".into()));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "/c")]), Some("/c/bitnet".into()));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "")]), of(&[home]));
        assert_eq!(of(&[home, ("XDG_CACHE_HOME", "here")]), of(&[home]));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("500M", 500 << 20),
            ("2.5G", 5 << 29),
            ("2.5 GiB", 5 << 29),
            ("10gb", 10 << 30),
            ("1T", 1 << 40),
            ("64k", 64 << 10),
            ("4096B", 4096),
            ("unlimited", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_answered_with_one() {
        for text in
            ["", "10", "G", "1X", "1GG", "-1G", "0G", "infG", "nanG", "1e999G", "1.G.", "IB"]
        {
            assert!(size(text).unwrap_err().contains("such as 500M"), "{text}");
        }
        assert!(size("0G").unwrap_err().ends_with("--no-cache keeps nothing"));
    }
    #[test]
    fn flags_come_before_variables_and_empty_variables_are_none() {
        let of = |flags: (Option<&str>, Option<u64>), variables: &[(&str, &str)]| {
            let place = CachePlace { cache_dir: flags.0.map(PathBuf::from), cache_size: flags.1 };
            let env = |name: &str| Some(variables.iter().find(|(n, _)| *n == name)?.1.into());
            place.config(&env).map(|cache| cache.map(|cache| (cache.folder, cache.max_bytes)))
        };
        let (dir, size) = (("BITNET_CACHE_DIR", "/v"), ("BITNET_CACHE_SIZE", "1G"));
        assert_eq!(of((None, None), &[dir, size]).unwrap(), Some(("/v".into(), 1 << 30)));
        assert_eq!(of((Some("/f"), Some(7)), &[dir, size]).unwrap(), Some(("/f".into(), 7)));
        let empty = [("BITNET_CACHE_DIR", ""), ("BITNET_CACHE_SIZE", "")];
        assert_eq!(of((None, None), &empty).unwrap(), None);
        let error = of((None, None), &[("BITNET_CACHE_SIZE", "much")]).unwrap_err().to_string();
        assert!(error.contains("BITNET_CACHE_SIZE=much") && !error.contains("--cache"), "{error}");
        assert!(of((None, Some(7)), &[("BITNET_CACHE_SIZE", "much")]).is_ok());
    }
}
