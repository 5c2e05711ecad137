//! What the answer to a line means for its order.

use reqwest::StatusCode;

use super::{super::order::LineAnswer, tally::LineResult};

/// The final result that an answer tells. `None` if a repetition may get another answer.
pub(super) fn result_of(answer: &LineAnswer) -> Option<LineResult> {
    let status = StatusCode::from_u16(answer.status).ok()?;
    match status {
        StatusCode::ACCEPTED => Some(LineResult::Accepted),
        StatusCode::CREATED => Some(LineResult::Completed),
        StatusCode::CONFLICT => Some(LineResult::Failed(answer.reason().to_owned())),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => None,
        _ if status.is_client_error() => Some(LineResult::Refused(status, answer.detail())),
        _ => None,
    }
}

/// Whether an order with this answer is perhaps saved.
pub(super) fn is_ambiguous(status: u16) -> bool {
    ![408, 429, 503].contains(&status)
}
