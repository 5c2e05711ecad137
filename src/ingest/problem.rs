//! Errors of the API as RFC 9457 wants them, and responses with a JSON body.

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The most wrong fields that one answer names.
pub(super) const MAX_FIELD_ERRORS: usize = 20;

/// A problem document (RFC 9457): an error as the client receives it.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    status: StatusCode,
    members: Map<String, Value>,
    is_expired: bool,
    headers: Vec<(HeaderName, String)>,
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct FieldError {
    /// A JSON pointer (RFC 6901) into the request's body.
    pub(crate) pointer: String,
    /// What is wrong, and what is allowed.
    pub(crate) detail: String,
}

impl Problem {
    /// A problem without a type of its own. `detail` says what went wrong this time.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let mut members = Map::new();
        members.insert("type".into(), "about:blank".into());
        members.insert("title".into(), status.canonical_reason().unwrap_or("Error").into());
        members.insert("status".into(), status.as_u16().into());
        members.insert("detail".into(), detail.into().into());
        Self { status, members, is_expired: false, headers: Vec::new() }
    }

    /// 422 that names the wrong fields, the first [`MAX_FIELD_ERRORS`] of them.
    pub(crate) fn invalid(errors: &[FieldError]) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the request is invalid; nothing was saved")
            .with_errors(errors)
    }

    /// Names the fields that are to blame, the first [`MAX_FIELD_ERRORS`] of them.
    #[must_use]
    pub(crate) fn with_errors(self, errors: &[FieldError]) -> Self {
        self.with("errors", json!(errors.get(..MAX_FIELD_ERRORS).unwrap_or(errors)))
    }

    /// 422 for a request that is too old: it is not known any more whether it was taken before.
    pub(crate) fn expired(detail: impl Into<String>) -> Self {
        Self { is_expired: true, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// 503 with a `Retry-After` of a second.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).header(header::RETRY_AFTER, "1")
    }

    /// 429 with a `Retry-After` of a second: the client has reached a limit of its own.
    pub(crate) fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).header(header::RETRY_AFTER, "1")
    }

    /// Adds a header to the response.
    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets an extension member (RFC 9457, section 3.2).
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// The detail, and each wrong field with its pointer, as one line.
    pub(super) fn text(&self) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let detail = self.members.get("detail").map(text).unwrap_or_default();
        let errors = self.members.get("errors").and_then(Value::as_array);
        errors.into_iter().flatten().fold(detail, |shown, error| {
            format!("{shown}; {}: {}", text(&error["pointer"]), text(&error["detail"]))
        })
    }

    pub(crate) fn body(&self) -> Value {
        Value::Object(self.members.clone())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let content_type = (header::CONTENT_TYPE, "application/problem+json".to_owned());
        respond(self.status, self.headers.iter().chain([&content_type]), &self.body())
    }
}

/// A response with a JSON body. Leaves out a header whose value is not allowed in HTTP.
pub(super) fn respond<'a>(
    status: StatusCode,
    headers: impl IntoIterator<Item = &'a (HeaderName, String)>,
    body: &Value,
) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
