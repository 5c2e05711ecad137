//! What each lock strategy promises on each database: the same tests for all four.

mod concurrency;
mod other_clients;
mod ownership;
mod redelivery;
mod release;
