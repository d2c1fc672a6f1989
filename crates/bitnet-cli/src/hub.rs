//! Models named `hf:OWNER/NAME`: what the environment says of the hub, and a bar while a download runs.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use bitnet::hub::{Hub, HubConfig, HubError, HubEvent, HubId, HubProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::console::Console;
use crate::failure::Failure;
use crate::report;

/// The local path of a model on the hub.
pub fn resolve(id: &str, console: &Console) -> Result<PathBuf> {
    let config = config(&|name| std::env::var_os(name))?;
    let found = find(id, config, console)
        .map_err(|error| Failure::input(with_cause(&error)).hint(hint(&error)))?;
    if found.downloaded > 0 {
        console.note(&format!(
            "{} downloaded to {}",
            report::bytes(found.downloaded),
            found.path.display()
        ));
    }
    Ok(found.path)
}

fn with_cause(error: &HubError) -> String {
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

/// What to try, with the variables that this program reads.
fn hint(error: &HubError) -> String {
    let variables = match error {
        HubError::Proxy { .. } => "HTTPS_PROXY or ALL_PROXY names it",
        HubError::Offline { .. } => "HF_HUB_OFFLINE=0 allows downloads",
        HubError::Unreachable { .. } => "HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy",
        HubError::Status { status: 401 | 403, .. } => "HF_TOKEN gives a token",
        HubError::Answer { .. } => "HF_ENDPOINT names the endpoint",
        HubError::Io { .. } => "HF_HOME names another folder",
        _ => return error.help(),
    };
    format!("{} ({variables})", error.help())
}

fn find(id: &str, config: HubConfig, console: &Console) -> Result<bitnet::hub::Resolved, HubError> {
    let id: HubId = id.parse()?;
    let told = *console;
    let hub = Hub::new(config)?.with_events(move |event| match event {
        HubEvent::Asking { url } => told.note(&format!("asking {url}")),
        HubEvent::Retrying { error, wait } => {
            let wait = report::seconds(wait);
            told.note(&format!("{}; trying again in {wait}", with_cause(error)));
        }
    });
    let bar = Bar::new(console);
    let found = hub.resolve(&id, &mut |progress| bar.show(&progress));
    bar.0.finish_and_clear();
    found
}

/// Python's variables: HF_ENDPOINT, HF_HUB_CACHE, HF_HOME, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE; and HTTPS_PROXY.
fn config(env: &dyn Fn(&str) -> Option<OsString>) -> Result<HubConfig, Failure> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let path = |name: &str| set(name).map(PathBuf::from);
    let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
    let user = || {
        let own = || path("HOME").or(path("USERPROFILE")).map(|home| home.join(".cache"));
        path("XDG_CACHE_HOME").or_else(own).map(|cache| cache.join("huggingface"))
    };
    let home = path("HF_HOME").or_else(user);
    let cache = path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|home| home.join("hub")));
    let mut config = HubConfig::new(cache.ok_or_else(|| {
        Failure::input("there is no folder for downloaded models: HOME is not set")
            .hint("name one with HF_HOME, HF_HUB_CACHE or XDG_CACHE_HOME")
    })?);
    if let Some(endpoint) = text("HF_ENDPOINT") {
        config.endpoint = endpoint_of(&endpoint)?;
    }
    config.token = match text("HF_TOKEN") {
        Some(token) => token_of(&token, "HF_TOKEN")?,
        None => match path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token"))) {
            Some(file) => match std::fs::read_to_string(&file) {
                Ok(token) => token_of(&token, &file.display().to_string())?,
                Err(_) => None,
            },
            None => None,
        },
    };
    config.offline = text("HF_HUB_OFFLINE")
        .is_some_and(|value| !["0", "false"].contains(&&*value.to_lowercase()));
    config.proxy = text("HTTPS_PROXY").or(text("https_proxy")).or(text("ALL_PROXY"));
    Ok(config)
}

fn endpoint_of(text: &str) -> Result<String, Failure> {
    let host = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or_default();
    let fits = |c: char| c.is_ascii_graphic() && !"<>\"\\^`{|}".contains(c);
    match host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && host.chars().all(fits)
    {
        true => Ok(text.to_owned()),
        false => Err(Failure::input(format!("HF_ENDPOINT={text} is no address of a server"))
            .hint("write https://HOST, or unset it for https://huggingface.co")),
    }
}

/// A token, none for an empty one. It is not repeated in the message, since it is a secret.
fn token_of(text: &str, place: &str) -> Result<Option<String>, Failure> {
    let token = text.trim();
    match token.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(Some(token.to_owned()).filter(|token| !token.is_empty())),
        false => Err(Failure::input(format!(
            "{place} holds no token: it has blanks or characters that no token has"
        ))
        .hint("copy it again from the hub's settings, or unset it for public models")),
    }
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
        config(&|name| Some(variables.iter().find(|(n, _)| *n == name)?.1.into())).unwrap()
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
        let plain = config_of(&[("HOME", "/h")]);
        assert_eq!((plain.token, plain.offline, plain.proxy), (None, false, None));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        let set = config_of(&[
            ("HOME", "/h"),
            ("HF_ENDPOINT", "https://mirror"),
            ("HF_TOKEN", "t\n"),
            ("HF_HUB_OFFLINE", "1"),
            ("HTTPS_PROXY", "http://p:1"),
        ]);
        assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("https://mirror", Some("t")));
        assert_eq!((set.offline, set.proxy.as_deref()), (true, Some("http://p:1")));
        assert!(!config_of(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).offline);
    }
    #[test]
    fn variables_that_cannot_be_are_refused_by_name() {
        let home = ("HOME", "/h");
        for (name, value) in [
            ("HF_ENDPOINT", "garbage"),
            ("HF_ENDPOINT", "https://"),
            ("HF_ENDPOINT", "https://a b"),
            ("HF_ENDPOINT", "ftp://host"),
            ("HF_TOKEN", "two words"),
            ("HF_TOKEN", "hf_\u{e9}"),
        ] {
            let variables = [home, (name, value)];
            let found = config(&|name| Some(variables.iter().find(|(n, _)| *n == name)?.1.into()));
            let error = found.unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert_eq!(error.contains(value), name != "HF_TOKEN", "{error}");
        }
        let error = config(&|_| None).unwrap_err().to_string();
        assert!(error.contains("HOME is not set"), "{error}");
        assert_eq!(
            config_of(&[home, ("HF_ENDPOINT", "http://[::1]:80/x")]).endpoint,
            "http://[::1]:80/x"
        );
    }
}
