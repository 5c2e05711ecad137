//! What a token grants.

use std::sync::Arc;

use super::scope::Scopes;
use crate::config::PrincipalLimits;

/// What a token grants, and to whom.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) name: Arc<str>,
    pub(super) scopes: Scopes,
    pub(super) limits: LimitChanges,
}

/// The limits of a principal that differ from those of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LimitChanges {
    pub(super) requests_per_second: Option<u32>,
    pub(super) connections: Option<usize>,
    pub(super) waiters: Option<usize>,
    pub(super) body_bytes: Option<usize>,
}

impl LimitChanges {
    /// Reads `NAME=NUMBER`. Returns `None` if it is malformed, or if the limit is set already.
    pub(super) fn set(&mut self, field: &str) -> Option<()> {
        fn put<T: std::str::FromStr>(limit: &mut Option<T>, text: &str) -> Option<()> {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| is_number && limit.is_none())?;
            *limit = Some(number);
            Some(())
        }
        let (name, number) = field.split_once('=')?;
        match name {
            "requests_per_second" => put(&mut self.requests_per_second, number),
            "connections" => put(&mut self.connections, number),
            "waiters" => put(&mut self.waiters, number),
            "body_bytes" => put(&mut self.body_bytes, number),
            _ => None,
        }
    }

    /// The limits of the principal, where those of all are `common`.
    pub(super) fn applied_to(self, common: PrincipalLimits) -> PrincipalLimits {
        PrincipalLimits {
            requests_per_second: self.requests_per_second.unwrap_or(common.requests_per_second),
            connections: self.connections.unwrap_or(common.connections),
            waiters: self.waiters.unwrap_or(common.waiters),
            body_bytes: self.body_bytes.unwrap_or(common.body_bytes),
        }
    }
}
