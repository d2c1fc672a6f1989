//! Where packed weights are kept between loads.

use std::ffi::OsString;
use std::path::PathBuf;

use bitnet::PackedCache;
use clap::ArgAction;

/// Whether and where packed weights are kept
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct CacheArgs {
    #[command(flatten)]
    place: CachePlace,
    /// Pack weights at each load, and write nothing
    #[arg(long, action = ArgAction::SetTrue)]
    no_cache: bool,
}

/// Where packed weights are kept, and how many
#[derive(clap::Args)]
pub struct CachePlace {
    /// Where packed weights are kept, so that later loads take a tenth of the time [default: bitnet in the user's cache folder,
    /// for large models]
    #[arg(long, env = "BITNET_CACHE_DIR", hide_env_values = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// What all packed weights together may take on the disk, such as 500M or 2.5G, or `unlimited`; those that were not used
    /// for the longest time go first [default: 10G]
    #[arg(long, env = "BITNET_CACHE_SIZE", hide_env_values = true, value_name = "SIZE")]
    #[arg(value_parser = size)]
    cache_size: Option<Size>,
}

/// Bytes, none for the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size(Option<u64>);

impl CacheArgs {
    /// As the library wants it.
    pub fn config(&self) -> Option<PackedCache> {
        if self.no_cache { None } else { self.place.config() }
    }
}

impl CachePlace {
    /// As the library wants it; none where there is no folder. A folder that was asked for is for small models too.
    pub fn config(&self) -> Option<PackedCache> {
        let mut cache = match self.cache_dir.as_ref().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(folder) => PackedCache { min_bytes: 0, ..PackedCache::new(folder) },
            None => PackedCache::new(folder(&|name| std::env::var_os(name))?),
        };
        if let Some(Size(Some(bytes))) = self.cache_size {
            cache.max_bytes = bytes;
        }
        Some(cache)
    }
}

/// Reads `500M`, `2.5 GiB`, `unlimited`; powers of 1024 all. An empty variable is as good as none.
fn size(text: &str) -> Result<Size, String> {
    match text.trim() {
        "" => return Ok(Size(None)),
        "unlimited" => return Ok(Size(Some(u64::MAX))),
        _ => {}
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
    Ok(Size(Some(bytes as u64)))
}

/// The folder that the system has for such things; none if there is no home either.
pub fn folder(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
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
            assert_eq!(size(text), Ok(Size(Some(bytes))), "{text}");
        }
        assert_eq!(size(""), Ok(Size(None)));
    }

    #[test]
    fn what_is_no_size_is_answered_with_one() {
        for text in ["10", "G", "1X", "1GG", "-1G", "0G", "infG", "nanG", "1e999G", "1.G.", "IB"] {
            assert!(size(text).unwrap_err().contains("such as 500M"), "{text}");
        }
        assert!(size("0G").unwrap_err().ends_with("--no-cache keeps nothing"));
    }
}
