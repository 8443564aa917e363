//! Budgets as people write them: a number of units or a percentage of a pool.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How many units of a pool may be unavailable at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum MaxUnavailable {
    /// A number of units, from 1.
    Units(u32),
    /// A percentage of the pool, 1 to 100, rounded down but never to zero.
    Percent(u8),
}

/// The text is not a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a budget: write a number of units from 1, or a percentage from `1%` to `100%`")]
pub(crate) struct BudgetError;

impl FromStr for MaxUnavailable {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        let number = |text: &str| {
            if text.starts_with('+') { Err(BudgetError) } else { text.parse::<u32>().map_err(|_| BudgetError) }
        };
        match text.strip_suffix('%') {
            Some(percent) => match u8::try_from(number(percent)?) {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(BudgetError),
            },
            None => match number(text)? {
                0 => Err(BudgetError),
                units => Ok(Self::Units(units)),
            },
        }
    }
}

impl fmt::Display for MaxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Units(units) => write!(f, "{units}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl TryFrom<String> for MaxUnavailable {
    type Error = BudgetError;
    fn try_from(text: String) -> Result<Self, BudgetError> {
        text.parse()
    }
}

impl From<MaxUnavailable> for String {
    fn from(budget: MaxUnavailable) -> Self {
        budget.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_numbers_or_percentages() {
        assert_eq!("2".parse(), Ok(MaxUnavailable::Units(2)));
        assert_eq!("10%".parse(), Ok(MaxUnavailable::Percent(10)));
        for bad in ["", "0", "0%", "101%", "-1", "+1", "1.5", "%", "ten", "300%"] {
            assert_eq!(bad.parse::<MaxUnavailable>(), Err(BudgetError), "{bad}");
        }
    }
}
