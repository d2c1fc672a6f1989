//! Lines become turns: one each, unless a backslash or `"""` joins several.

const FENCE: &str = "\"\"\"";

/// Lines of a turn that is not complete.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Vec<String>,
    fenced: bool,
}

impl Lines {
    /// Takes a line, and gives the turn that it completes.
    pub fn push(&mut self, line: &str) -> Option<String> {
        if self.fenced {
            return self.push_fenced(line);
        }
        if self.lines.is_empty()
            && let Some(rest) = line.trim_start().strip_prefix(FENCE)
        {
            self.fenced = true;
            return if rest.is_empty() { None } else { self.push_fenced(rest) };
        }
        if let Some(start) = line.strip_suffix('\\') {
            self.lines.push(start.to_owned());
            return None;
        }
        self.lines.push(line.to_owned());
        self.finish()
    }

    fn push_fenced(&mut self, line: &str) -> Option<String> {
        let Some(last) = line.trim_end().strip_suffix(FENCE) else {
            self.lines.push(line.to_owned());
            return None;
        };
        if !last.is_empty() {
            self.lines.push(last.to_owned());
        }
        self.finish()
    }

    /// The turn so far, also if it is not complete; none if there is none.
    pub fn finish(&mut self) -> Option<String> {
        let begun = self.is_open();
        self.fenced = false;
        let lines = std::mem::take(&mut self.lines);
        (begun || !lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Whether more lines are needed.
    pub fn is_open(&self) -> bool {
        self.fenced || !self.lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &[&str], expected: &[&str]) {
        let mut lines = Lines::default();
        let mut turns: Vec<_> = input.iter().filter_map(|line| lines.push(line)).collect();
        turns.extend(lines.finish());
        assert_eq!(turns, expected);
    }

    #[test]
    fn a_line_is_a_turn() {
        check(&["hello", "", " there"], &["hello", "", " there"]);
    }

    #[test]
    fn a_backslash_joins_lines() {
        check(&["a\\", "b\\", "c", "d"], &["a\nb\nc", "d"]);
    }

    #[test]
    fn fences_hold_anything() {
        check(&["\"\"\"", "a", "", "/help \\", "\"\"\"", "b"], &["a\n\n/help \\", "b"]);
        check(&["\"\"\"a", "b\"\"\""], &["a\nb"]);
        check(&["\"\"\"one line\"\"\""], &["one line"]);
        check(&["\"\"\"", "\"\"\""], &[""]);
    }

    #[test]
    fn an_end_in_the_middle_gives_what_there_is() {
        check(&["a\\"], &["a"]);
        check(&["\"\"\"a", "b"], &["a\nb"]);
    }
}
