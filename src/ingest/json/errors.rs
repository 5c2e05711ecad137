use std::cell::RefCell;

use serde::de;

use crate::ingest::problem::{FieldError, MAX_FIELD_ERRORS};

/// The wrong fields of a request, [`MAX_FIELD_ERRORS`] at most.
#[derive(Debug, Default)]
pub(in crate::ingest) struct FieldErrors(RefCell<Vec<FieldError>>);

impl FieldErrors {
    /// Adds an error. Fails, so that the parser ends, once there are [`MAX_FIELD_ERRORS`].
    pub(super) fn add<E: de::Error>(
        &self,
        pointer: impl Into<String>,
        detail: impl Into<String>,
    ) -> Result<(), E> {
        self.0.borrow_mut().push(FieldError { pointer: pointer.into(), detail: detail.into() });
        if self.are_enough() { Err(E::custom("too many errors")) } else { Ok(()) }
    }

    /// Whether the parser ended early, because there are [`MAX_FIELD_ERRORS`].
    pub(in crate::ingest) fn are_enough(&self) -> bool {
        self.0.borrow().len() >= MAX_FIELD_ERRORS
    }

    pub(in crate::ingest) fn into_inner(self) -> Vec<FieldError> {
        self.0.into_inner()
    }
}
