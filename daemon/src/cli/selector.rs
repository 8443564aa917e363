//! Selectors: what a command is about, as people write it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use unstale_protocol::ids::{AppName, HostName, NameError, Pid, PoolName, SlotId, UnitId};

/// A choice of units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Selector {
    /// Every unit of a host.
    Host(HostName),
    /// One life of a unit.
    Unit(UnitId),
    /// Whatever lives in a slot.
    Slot(SlotId),
    /// Every unit of a pool.
    Pool(PoolName),
    /// Every unit of an app.
    App(AppName),
    /// The unit that a process belongs to.
    Pid(Pid),
}

/// The text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SelectorError {
    /// No known prefix.
    #[error("not a selector: write `host:NAME`, `unit:ID`, `slot:ID`, `pool:NAME`, `app:NAME` or `pid:N`")]
    Prefix,
    /// What follows the prefix is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows `pid:` is not a process number.
    #[error("not a process number: {0:?}")]
    Pid(String),
}

fn pid(text: &str) -> Result<Pid, SelectorError> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(Pid(number)),
        _ => Err(SelectorError::Pid(text.chars().take(40).collect())),
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let Some((prefix, name)) = text.split_once(':') else {
            return if text.bytes().all(|byte| byte.is_ascii_digit()) {
                pid(text).map(Self::Pid)
            } else {
                Err(SelectorError::Prefix)
            };
        };
        match prefix {
            "host" => Ok(Self::Host(HostName::new(name)?)),
            "unit" => Ok(Self::Unit(UnitId::new(name)?)),
            "slot" => Ok(Self::Slot(SlotId::new(name)?)),
            "pool" => Ok(Self::Pool(PoolName::new(name)?)),
            "app" => Ok(Self::App(AppName::new(name)?)),
            "pid" => pid(name).map(Self::Pid),
            // `celery:4711` is what every answer calls a unit, so it is what people paste.
            _ if pid(name).is_ok() && prefix.bytes().all(|byte| byte.is_ascii_lowercase()) && !prefix.is_empty() => {
                Ok(Self::Unit(UnitId::new(text)?))
            }
            _ => Err(SelectorError::Prefix),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "host:{name}"),
            Self::Unit(id) => write!(f, "unit:{id}"),
            Self::Slot(id) => write!(f, "slot:{id}"),
            Self::Pool(name) => write!(f, "pool:{name}"),
            Self::App(name) => write!(f, "app:{name}"),
            Self::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;
    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_and_written_back() {
        let check = |text: &str, back: &str| {
            assert_eq!(text.parse::<Selector>().map(|selector| selector.to_string()), Ok(back.to_owned()));
        };
        check("host:web-3", "host:web-3");
        check("unit:celery:4711", "unit:celery:4711");
        check("celery:4711", "unit:celery:4711");
        check("slot:celery/systemd/shop@1.service", "slot:celery/systemd/shop@1.service");
        check("slot:celery/supervisord:0a1b2c3d/shop:worker", "slot:celery/supervisord:0a1b2c3d/shop:worker");
        check("pool:shop/celery/shop", "pool:shop/celery/shop");
        check("app:shop", "app:shop");
        check("pid:4711", "pid:4711");
        check("4711", "pid:4711");
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for bad in
            ["", "shop", "pid:0", "pid:x", "pid:99999999999", "host:", "host:a b", "celery:x", ":7", "*", "hots:web"]
        {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
