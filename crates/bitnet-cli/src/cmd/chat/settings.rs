//! `/set`: the sampling options by their command-line names.

use std::error::Error as _;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::args::SamplingArgs;
use crate::failure::Failure;
use crate::report::Table;

/// The options alone, so that `/set` reads values exactly as the command line does.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Setting {
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Names that `/set` knows, with their present values.
fn values(sampling: &SamplingArgs) -> [(&'static str, String); 10] {
    let seed =
        sampling.seed.map_or_else(|| "another one each time".to_owned(), |seed| seed.to_string());
    [
        ("max-tokens", sampling.max_tokens.to_string()),
        ("temperature", sampling.temperature.to_string()),
        ("top-k", sampling.top_k.to_string()),
        ("top-p", sampling.top_p.to_string()),
        ("min-p", sampling.min_p.to_string()),
        ("repeat-penalty", sampling.repeat_penalty.to_string()),
        ("repeat-last-n", sampling.repeat_last_n.to_string()),
        ("presence-penalty", sampling.presence_penalty.to_string()),
        ("frequency-penalty", sampling.frequency_penalty.to_string()),
        ("seed", seed),
    ]
}

pub fn table(sampling: &SamplingArgs) -> String {
    let mut table = Table::facts();
    values(sampling).into_iter().for_each(|(name, value)| table.row([name.to_owned(), value]));
    table.render("")
}

/// Changes one setting, or says why it cannot be so and leaves it.
pub fn set(sampling: &mut SamplingArgs, name: &str, value: &str) -> Result<(), Failure> {
    let known = values(sampling).map(|(name, _)| name);
    if !known.contains(&name) {
        return Err(Failure::input(format!("/set: `{name}` is no setting"))
            .hint(format!("settings are {}", known.join(", "))));
    }
    let mut changed = sampling.clone();
    let matches = Setting::command().try_get_matches_from([format!("--{name}={value}")]);
    let parsed = matches.and_then(|matches| Setting::from_arg_matches(&matches));
    let new = parsed
        .map_err(|error| {
            let expected = error.source().map_or_else(String::new, |reason| format!(", {reason}"));
            Failure::input(format!("/set {name}: found `{value}`{expected}"))
        })?
        .sampling;
    match name {
        "max-tokens" => changed.max_tokens = new.max_tokens,
        "temperature" => changed.temperature = new.temperature,
        "top-k" => changed.top_k = new.top_k,
        "top-p" => changed.top_p = new.top_p,
        "min-p" => changed.min_p = new.min_p,
        "repeat-penalty" => changed.repeat_penalty = new.repeat_penalty,
        "repeat-last-n" => changed.repeat_last_n = new.repeat_last_n,
        "presence-penalty" => changed.presence_penalty = new.presence_penalty,
        "frequency-penalty" => changed.frequency_penalty = new.frequency_penalty,
        _ => changed.seed = new.seed,
    }
    changed.config().sampling().map_err(|error| Failure::input(format!("/set: {error}")))?;
    *sampling = changed;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> SamplingArgs {
        Setting::parse_from::<_, &str>([]).sampling
    }

    #[test]
    fn every_setting_of_the_table_can_be_set() {
        for (name, _) in values(&sampling()) {
            let mut sampling = sampling();
            set(&mut sampling, name, "1").unwrap();
            assert!(values(&sampling).contains(&(name, "1".to_owned())), "{name}");
        }
    }

    #[test]
    fn what_is_no_number_is_answered_with_what_would_be_one() {
        let say = |name, value| set(&mut sampling(), name, value).unwrap_err().to_string();
        let expected =
            "/set top-k: found `-1`, expected a whole number from 0 to 18446744073709551615";
        assert_eq!(say("top-k", "-1"), expected);
        assert_eq!(
            say("temperature", "hot"),
            "/set temperature: found `hot`, expected a number such as 0.8"
        );
    }

    #[test]
    fn a_wrong_value_changes_nothing() {
        let mut sampling = sampling();
        for (name, value) in [
            ("top-p", "2"),
            ("top-k", "-1"),
            ("temperature", "hot"),
            ("max-tokens", "0"),
            ("volume", "11"),
        ] {
            assert!(set(&mut sampling, name, value).is_err(), "{name} {value}");
        }
        assert_eq!(values(&sampling), values(&self::sampling()));
    }
}
