//! bitnet.cpp's spellings with one dash, which would otherwise be read as bundles of short flags.

use std::ffi::OsString;

/// Flags whose next argument is free text, so that it is left alone whatever it looks like.
const TAKES_TEXT: [&str; 6] = ["-p", "--prompt", "--system", "--stop", "-f", "--file"];

/// Rewrites `-temp`, `-cnv` and the like; everything after `--` and all texts stay as they are.
pub fn modern(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut literal = false;
    for arg in argv {
        let text =
            out.last().and_then(|last| last.to_str()).is_some_and(|l| TAKES_TEXT.contains(&l));
        literal |= arg == "--";
        let new = (!literal && !text).then(|| arg.to_str().and_then(rewrite)).flatten();
        out.push(new.map_or(arg, OsString::from));
    }
    out
}

fn rewrite(arg: &str) -> Option<String> {
    let (name, value) =
        arg.split_once('=').map_or((arg, None), |(name, value)| (name, Some(value)));
    let long = match name {
        "-temp" => "--temperature",
        "-cnv" => "--conversation",
        "-tb" => "--threads-batch",
        _ => return None,
    };
    Some(value.map_or_else(|| long.to_owned(), |value| format!("{long}={value}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(argv: &str, expected: &str) {
        let modern = modern(argv.split(' ').map(OsString::from));
        assert_eq!(modern.join(std::ffi::OsStr::new(" ")), OsString::from(expected));
    }

    #[test]
    fn old_spellings_become_long_flags() {
        check("x run -temp 0.7 -cnv", "x run --temperature 0.7 --conversation");
        check("x run -temp=0.7", "x run --temperature=0.7");
        check("x run -t 2 -tb 4", "x run -t 2 --threads-batch 4");
    }

    #[test]
    fn texts_are_left_alone() {
        check("x run -p -temp", "x run -p -temp");
        check("x run -- -cnv", "x run -- -cnv");
        check("x run -t 4 -n 3", "x run -t 4 -n 3");
    }
}
