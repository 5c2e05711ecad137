//! Values that are one of a few words.

use super::values::FromText;

/// Makes an enum whose variants are words of the configuration: `WORDS` lists them, `as_str`
/// writes one, and [`FromText`] reads one.
macro_rules! choice {
    ($(#[$about:meta])* $visibility:vis enum $name:ident {
        $($(#[$about_variant:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$about_variant])* $variant,)+
        }

        impl $name {
            const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];
            pub(super) const WORDS: [&'static str; Self::ALL.len()] = [$($word),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromText for $name {
            fn from_text(text: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|choice| choice.as_str() == text)
            }
        }
    };
}

choice! {
    /// How workers keep each other off the products of a batch.
    pub enum LockStrategy {
        Row = "row",
        Redlock = "redlock",
    }
}

choice! {
    /// What a worker does while no majority of the Redis masters answers.
    pub(crate) enum LockFallback {
        /// It waits.
        None = "none",
        /// It locks rows instead.
        Row = "row",
    }
}

choice! {
    /// How the members of a consumer group share its partitions.
    pub(crate) enum GroupProtocol {
        /// The members agree among themselves.
        Classic = "classic",
        /// The broker assigns the partitions (KIP-848).
        Consumer = "consumer",
    }
}

choice! {
    pub(crate) enum LogFormat {
        Text = "text",
        Json = "json",
    }
}
