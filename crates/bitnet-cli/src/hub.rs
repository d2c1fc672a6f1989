//! Models named `hf:OWNER/NAME`: what the environment says of the hub, and a bar while a download runs.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use bitnet::hub::{Hub, HubConfig, HubError, HubId, HubProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::Console;
use crate::failure::Failure;
use crate::report;

/// The local path of a model on the hub.
pub fn resolve(id: &str, console: &Console) -> Result<PathBuf> {
    let found = find(id, console).map_err(|error| {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        Failure::input(format!("{error}{cause}")).hint(error.help())
    })?;
    if found.downloaded > 0 {
        console.note(&format!(
            "{} downloaded to {}",
            report::bytes(found.downloaded),
            found.path.display()
        ));
    }
    Ok(found.path)
}

fn find(id: &str, console: &Console) -> Result<bitnet::hub::Resolved, HubError> {
    let id: HubId = id.parse()?;
    let hub = Hub::new(config(&|name| std::env::var_os(name)))?;
    let bar = Bar::new(console);
    let found = hub.resolve(&id, &mut |progress| bar.show(&progress));
    bar.0.finish_and_clear();
    found
}

/// Python's variables: HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE; and HTTPS_PROXY.
fn config(env: &dyn Fn(&str) -> Option<OsString>) -> HubConfig {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let text = |name: &str| set(name)?.into_string().ok();
    let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
        let own =
            || set("HOME").or(set("USERPROFILE")).map(|home| PathBuf::from(home).join(".cache"));
        cache.or_else(own).unwrap_or_else(|| ".cache".into()).join("huggingface")
    });
    let mut config =
        HubConfig::new(set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from));
    if let Some(endpoint) = text("HF_ENDPOINT") {
        config.endpoint = endpoint;
    }
    let token_file = || {
        let path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        std::fs::read_to_string(path).ok()
    };
    let token = text("HF_TOKEN").or_else(token_file).map(|token| token.trim().to_owned());
    config.token = token.filter(|token| !token.is_empty());
    config.offline = text("HF_HUB_OFFLINE")
        .is_some_and(|value| !["0", "false"].contains(&&*value.to_lowercase()));
    config.proxy = text("HTTPS_PROXY").or(text("https_proxy")).or(text("ALL_PROXY"));
    config
}

struct Bar(ProgressBar);

impl Bar {
    fn new(console: &Console) -> Self {
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template)
            .expect("the template is well-formed")
            .progress_chars("##-");
        let target = match console.has_bars() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self(ProgressBar::with_draw_target(None, target).with_style(style))
    }

    fn show(&self, progress: &HubProgress<'_>) {
        if self.0.message() != progress.file {
            self.0.set_message(progress.file.to_owned());
            self.0.reset();
        }
        self.0.set_length(progress.total.unwrap_or(progress.done));
        self.0.set_position(progress.done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(variables: &[(&str, &str)]) -> HubConfig {
        config(&|name| Some(variables.iter().find(|(n, _)| *n == name)?.1.into()))
    }

    #[test]
    fn the_cache_is_where_python_keeps_it() {
        let cache = |variables| config_of(variables).cache;
        assert_eq!(cache(&[("HOME", "/h")]), PathBuf::from("/h/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
            PathBuf::from("/x/huggingface/hub")
        );
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), PathBuf::from("/f/hub"));
        assert_eq!(cache(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
    }

    #[test]
    fn variables_set_endpoint_token_proxy_and_offline() {
        let plain = config_of(&[]);
        assert_eq!((plain.token, plain.offline, plain.proxy), (None, false, None));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        let set = config_of(&[
            ("HF_ENDPOINT", "https://mirror"),
            ("HF_TOKEN", "t\n"),
            ("HF_HUB_OFFLINE", "1"),
            ("HTTPS_PROXY", "http://p:1"),
        ]);
        assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("https://mirror", Some("t")));
        assert_eq!((set.offline, set.proxy.as_deref()), (true, Some("http://p:1")));
        assert!(!config_of(&[("HF_HUB_OFFLINE", "0")]).offline);
    }
}
