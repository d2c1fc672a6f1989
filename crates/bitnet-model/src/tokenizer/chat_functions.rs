//! What transformers adds to Jinja for chat templates.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// Adds `raise_exception` and `strftime_now`.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        strftime(now, &format)
    });
}

/// The reason without minijinja's name for its kind, which says nothing to a user of `raise_exception`.
pub(super) fn message(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.into(),
        _ => error.to_string(),
    }
}

/// `{% generation %}` marks answers for training. It becomes a condition that always holds, so that signs for white space
/// (`{%-`) keep their meaning.
pub(super) fn ignore_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        text.push_str(before);
        text.push_str("{%");
        rest = tag;
        let Some((inside, after)) = tag.split_once("%}") else { break };
        let name = inside.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        let replaced = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        text.push_str(&inside.replace(name, replaced));
        text.push_str("%}");
        rest = after;
    }
    text + rest
}

/// Python's `strftime` in UTC, for what templates use of it; anything else stays as it is.
fn strftime(unix_seconds: u64, format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (seconds / 3600, seconds / 60 % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);

    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text.push_str(&match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", seconds % 60),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('%') | None => "%".into(),
            Some(other) => format!("%{other}"),
        });
    }
    text
}

/// Year, month and day of a number of days since 1970. Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of year 0, so that leap days end a year; 146097 days are 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`; Jinja's own filter would escape `<` for HTML.
pub(super) fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&value, indent.map(|width| width.min(16)), 0, &mut text)?;
    Ok(text)
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    let fail = |problem: &'static str| Err(Error::new(ErrorKind::InvalidOperation, problem));
    if depth > 64 {
        return fail("tojson: nested too deeply");
    }
    let new_line = |depth: usize, text: &mut String| {
        if let Some(width) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        // Templates write truth values as Python does, JSON does not.
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&value.to_string()),
        ValueKind::String => text.push_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let is_map = value.kind() == ValueKind::Map;
            text.push(if is_map { '{' } else { '[' });
            let mut empty = true;
            for item in value.try_iter()?.checked() {
                let item = item?;
                text.push_str(if empty { "" } else { separator });
                empty = false;
                new_line(depth + 1, text);
                if is_map {
                    text.push_str(&quoted(&item.to_string()));
                    text.push_str(": ");
                    write_json(&value.get_item(&item)?, indent, depth + 1, text)?;
                } else {
                    write_json(&item, indent, depth + 1, text)?;
                }
            }
            if !empty {
                new_line(depth, text);
            }
            text.push(if is_map { '}' } else { ']' });
        }
        _ => return fail("tojson: not a JSON value"),
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    #[test]
    fn dates_are_written_as_in_python() {
        let check = |seconds, expected: &str| {
            assert_eq!(strftime(seconds, "%a %d %b %Y, %I:%M %p, %B %A %y %q %%"), expected)
        };
        check(0, "Thu 01 Jan 1970, 12:00 AM, January Thursday 70 %q %");
        check(1_709_210_096, "Thu 29 Feb 2024, 12:34 PM, February Thursday 24 %q %");
        check(4_102_444_799, "Thu 31 Dec 2099, 11:59 PM, December Thursday 99 %q %");
    }

    #[test]
    fn generation_tags_become_conditions_with_the_same_white_space() {
        let source = "{% for m in x %}{%- generation -%} a {% endgeneration %}{{ '{% generation %}' }}{% endfor %}";
        let expected =
            "{% for m in x %}{%- if true -%} a {% endif %}{{ '{% if true %}' }}{% endfor %}";
        assert_eq!(ignore_generation_tags(source), expected);
        assert_eq!(ignore_generation_tags("{% unclosed"), "{% unclosed");
    }

    #[test]
    fn json_is_written_as_in_python() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", to_json);
        let check = |template: &str, expected: &str| {
            let value = context! { a => "<é\n>", b => vec![Value::from(1), Value::from(true), Value::from(())] };
            assert_eq!(environment.render_str(template, context! { value }).unwrap(), expected);
        };
        check("{{ value|tojson }}", "{\"a\": \"<é\\n>\", \"b\": [1, true, null]}");
        check("{{ [1, []]|tojson(indent=2) }}", "[\n  1,\n  []\n]");
    }
}
