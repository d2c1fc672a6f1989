//! Where packed weights are kept between loads.

use std::ffi::OsString;
use std::path::PathBuf;

use bitnet::PackedCache;
use clap::ArgAction;

/// Whether and where packed weights are kept
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct CacheArgs {
    /// Where packed weights are kept, so that later loads take a tenth of the time [default: bitnet in the user's cache folder,
    /// for large models]
    #[arg(long, env = "BITNET_CACHE_DIR", hide_env_values = true, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Pack weights at each load, and write nothing
    #[arg(long, action = ArgAction::SetTrue)]
    no_cache: bool,
}

impl CacheArgs {
    /// As the library wants it. A folder that was asked for is for small models too.
    pub fn config(&self) -> Option<PackedCache> {
        if self.no_cache {
            return None;
        }
        match self.cache_dir.as_ref().filter(|folder| !folder.as_os_str().is_empty()) {
            Some(folder) => Some(PackedCache { min_bytes: 0, ..PackedCache::new(folder) }),
            None => folder(&|name| std::env::var_os(name)).map(PackedCache::new),
        }
    }
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
}
