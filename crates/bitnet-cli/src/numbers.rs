//! Numbers on the command line. What is none is answered with what would be one; clap adds the flag and the text found.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Reads whole numbers of a range.
pub fn whole<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: Copy + Display + FromStr + PartialOrd + Send + Sync + 'static,
{
    move |text| {
        let (least, most) = (range.start(), range.end());
        text.parse()
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("expected a whole number from {least} to {most}"))
    }
}

/// Reads any number, and also what only looks like one (`inf`, `nan`): which of them a setting may have is the library's to say.
pub fn real(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "expected a number such as 0.8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_outside_the_range_are_answered_with_it() {
        let parse = whole(1..=300_u32);
        assert_eq!((parse("1"), parse("300")), (Ok(1), Ok(300)));
        for bad in ["0", "301", "-1", "1.5", "", " 1", "1e2", "99999999999999999999"] {
            assert_eq!(parse(bad).unwrap_err(), "expected a whole number from 1 to 300", "{bad}");
        }
    }

    #[test]
    fn words_are_no_real_numbers() {
        assert_eq!(real("-0.5"), Ok(-0.5));
        assert_eq!(real("hot").unwrap_err(), "expected a number such as 0.8");
    }
}
