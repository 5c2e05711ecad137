//! Times as arguments.

use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};

/// A time, or an age.
#[derive(Debug, Clone, Copy)]
pub(super) enum Since {
    Time(DateTime<Utc>),
    Age(Duration),
}

impl Since {
    /// An age beyond 1970 counts as 1970.
    pub(super) fn at(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Time(time) => time,
            Self::Age(age) => chrono::TimeDelta::from_std(age)
                .ok()
                .and_then(|age| now.checked_sub_signed(age))
                .unwrap_or(DateTime::UNIX_EPOCH),
        }
    }
}

pub(super) fn parse_since(text: &str) -> anyhow::Result<Since> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Since::Time(time.to_utc()));
    }
    humantime::parse_duration(text).map(Since::Age).map_err(|_| {
        anyhow!("expected an RFC 3339 time such as 2026-01-31T12:00:00Z, or an age such as 2h")
    })
}
