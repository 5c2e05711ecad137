//! The text of an error together with its causes.

use std::error::Error;

/// The text of `error` and of each of its sources, outermost first, separated by `": "`.
///
/// Each cause appears once: errors of other crates often repeat their source in their own text, so
/// a cause whose text is already there is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("not saved")]
        Silent(#[source] Inner),
        #[error("not saved: {0}")]
        Repeating(#[source] Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("connection refused")]
    struct Inner;

    #[test]
    fn each_cause_is_shown_once_whether_or_not_an_error_repeats_it() {
        for error in [Outer::Silent(Inner), Outer::Repeating(Inner)] {
            assert_eq!(with_causes(&error), "not saved: connection refused");
        }
        assert_eq!(with_causes(&Inner), "connection refused");
    }
}
