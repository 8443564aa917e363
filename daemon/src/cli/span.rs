//! Lengths of time as people write them: `90s`, `15m`, `0` for ever.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Longest span: a year. Longer ones are mistakes.
const MAX: Duration = Duration::from_hours(366 * 24);

/// A length of time; `0` means without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Span(Duration);

impl Span {
    /// Returns the span of `seconds`.
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Returns the length as written; zero for one without end.
    pub(crate) fn duration(self) -> Duration {
        self.0
    }

    /// Returns the length, or `None` for one without end.
    pub(crate) fn limit(self) -> Option<Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

/// The text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a length of time: write a number with `ms`, `s`, `m`, `h` or `d`, such as `90s` or `15m`; `0` is for ever"
)]
pub(crate) struct SpanError;

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut rest = text;
        let mut total = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(SpanError)?;
            let (number, tail) = rest.split_at(digits);
            let number: u32 = number.parse().map_err(|_| SpanError)?;
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let unit = match unit {
                "ms" => Duration::from_millis(1),
                "s" => Duration::from_secs(1),
                "m" => Duration::from_mins(1),
                "h" => Duration::from_hours(1),
                "d" => Duration::from_hours(24),
                _ => return Err(SpanError),
            };
            total = unit.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or(SpanError)?;
            rest = tail;
        }
        if text.is_empty() || total > MAX { Err(SpanError) } else { Ok(Self(total)) }
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0");
        }
        let mut ms = self.0.as_millis();
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            let count = ms / size;
            // `90s` stays `90s`: a larger unit is used only where nothing is left over.
            if count > 0 && (ms.is_multiple_of(size) || unit == "ms") {
                return write!(f, "{count}{unit}");
            }
            if count > 0 && unit == "s" {
                write!(f, "{count}{unit}")?;
                ms %= size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_back() {
        let check = |text: &str, ms: u64, back: &str| {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.duration(), Duration::from_millis(ms), "{text}");
            assert_eq!(span.to_string(), back, "{text}");
            assert_eq!(back.parse(), Ok(span));
        };
        check("90s", 90_000, "90s");
        check("15m", 900_000, "15m");
        check("1h30m", 5_400_000, "90m");
        check("500ms", 500, "500ms");
        check("1500ms", 1_500, "1s500ms");
        check("2d", 172_800_000, "2d");
        check("0", 0, "0");
        check("0s", 0, "0");
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for bad in ["", "15", "m", "-5s", "1.5h", "5 m", "9w", "99999999999s", "4000d", "4294967295d"] {
            assert_eq!(bad.parse::<Span>(), Err(SpanError), "{bad}");
        }
    }

    #[test]
    fn zero_is_without_end() {
        assert_eq!("0".parse::<Span>().unwrap().limit(), None);
        assert_eq!("1s".parse::<Span>().unwrap().limit(), Some(Duration::from_secs(1)));
    }
}
