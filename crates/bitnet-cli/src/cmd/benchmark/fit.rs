//! Defaults for models whose context is shorter than what is measured otherwise.

use bitnet::bench::BenchConfig;

/// Cuts what was not given, prompt and generation, to a context of so many tokens, and says what it is now. What was given
/// stays, and is an error where it does not fit.
pub fn fit(config: &mut BenchConfig, given: (bool, bool), context: usize) -> Option<String> {
    let mut notes = Vec::new();
    let prompt = config.prompt_tokens;
    if !given.0 && prompt >= context {
        config.prompt_tokens = context.saturating_sub(1).max(1);
        notes.push(format!("a prompt of {} in place of {prompt}", config.prompt_tokens));
    }
    let generated = config.generated_tokens;
    let shorter = |tokens: usize| {
        BenchConfig { prompt_tokens: 0, generated_tokens: tokens, ..config.clone() }.fits(context)
    };
    let halves = std::iter::successors(Some(generated), |tokens| Some(tokens / 2));
    let fitting = halves.take_while(|tokens| *tokens > 0).find(|tokens| shorter(*tokens));
    if let Some(tokens) = fitting.filter(|tokens| !given.1 && *tokens < generated) {
        config.generated_tokens = tokens;
        notes.push(format!("generations of {tokens} in place of {generated}"));
    }
    (!notes.is_empty())
        .then(|| format!("the model's context has {context} tokens: {}", notes.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: BenchConfig, given: (bool, bool), context: usize, tokens: (usize, usize)) {
        let mut fitted = config.clone();
        let note = fit(&mut fitted, given, context);
        assert_eq!((fitted.prompt_tokens, fitted.generated_tokens), tokens);
        assert_eq!(note.is_some(), fitted != config, "{note:?}");
    }

    #[test]
    fn defaults_are_cut_to_the_context_and_what_was_given_is_not() {
        let default = BenchConfig::default();
        let deep = BenchConfig { depths: vec![0, 400], ..default.clone() };
        let many = BenchConfig { batch_sizes: vec![4], ..default.clone() };
        check(default.clone(), (false, false), 4096, (512, 128));
        check(default.clone(), (false, false), 512, (511, 128));
        check(default.clone(), (false, false), 100, (99, 64));
        check(default, (true, true), 100, (512, 128));
        check(deep, (false, false), 512, (511, 64));
        check(many, (false, false), 512, (511, 64));
        let beyond = BenchConfig { depths: vec![9999], ..BenchConfig::default() };
        check(beyond, (true, false), 512, (512, 128));
    }
}
