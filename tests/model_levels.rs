//! An exhaustive check of the protocol by which levels of one product are published.
//!
//! It visits every interleaving of two workers with a batch each, a command that changes stock and
//! leaves a note, and the publisher of noted products. Every process may die at any step, twice in
//! all. A batch whose offset is not stored comes again. The model is the protocol of
//! `src/levels/mod.rs`.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "model/checks.rs"]
mod checks;

use checks::{breaks, holds_in_all_states};
use stateright::{Model, Property};

const WORKERS: usize = 2;
/// The publisher of noted products is the writer after the workers.
const PUBLISHER: usize = WORKERS;
const MAX_DEATHS: u8 = 2;
const LAST_IS_HIGHEST: &str = "when nothing is to be done, the last record has the last version";

/// A way to get the protocol wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// A writer does not read the product again after the acknowledgement.
    NoReread,
    /// A batch that comes again publishes nothing, since it changes nothing.
    RedeliveredPublishesNothing,
    /// The note is deleted before the record is acknowledged.
    NoteDeletedFirst,
    /// The note is deleted also if it is not the one that the publisher read.
    NoteDeletedBlindly,
}

/// How far a writer is. The number is the version that it read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    Committed,
    Read(u8),
    Acknowledged(u8),
    /// The product still has the version that was published.
    Settled(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    version: u8,
    /// The id of the note. No two notes have the same id.
    note: Option<u8>,
    notes_written: u8,
    /// The note that the publisher read.
    noted: Option<u8>,
    /// The version of the last record of the topic, and the highest one.
    last: u8,
    highest: u8,
    writers: [Step; WORKERS + 1],
    is_committed: [bool; WORKERS],
    is_offset_stored: [bool; WORKERS],
    has_command_run: bool,
    deaths: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    /// A worker gets its batch and commits it, or finds it committed.
    Commit(usize),
    /// The writer reads the product.
    Read(usize),
    /// The record is appended and acknowledged.
    Append(usize),
    ReadAgain(usize),
    /// The product changed again and again: the worker leaves a note.
    LeaveNote(usize),
    /// The worker stores the offset, or the publisher deletes the note.
    Finish(usize),
    /// A command changes the product and notes it, in one transaction. Then it ends.
    Command,
    Die(usize),
}

struct Protocol(Option<Mutant>);

impl Protocol {
    fn is(&self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }
}

impl State {
    fn write_note(&mut self) {
        self.notes_written += 1;
        self.note = Some(self.notes_written);
    }

    fn is_quiet(&self) -> bool {
        self.is_offset_stored == [true; WORKERS]
            && self.has_command_run
            && self.note.is_none()
            && self.writers == [Step::Idle; WORKERS + 1]
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            version: 0,
            note: None,
            notes_written: 0,
            noted: None,
            last: 0,
            highest: 0,
            writers: [Step::Idle; WORKERS + 1],
            is_committed: [false; WORKERS],
            is_offset_stored: [false; WORKERS],
            has_command_run: false,
            deaths: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.has_command_run {
            actions.push(Action::Command);
        }
        for writer in 0..=WORKERS {
            let is_worker = writer < WORKERS;
            match state.writers[writer] {
                Step::Idle if is_worker && !state.is_offset_stored[writer] => {
                    actions.push(Action::Commit(writer));
                }
                Step::Idle if !is_worker && state.note.is_some() => {
                    actions.push(Action::Read(writer));
                }
                Step::Idle => {}
                Step::Committed => actions.push(Action::Read(writer)),
                Step::Read(_) => actions.push(Action::Append(writer)),
                Step::Acknowledged(version) => {
                    actions.push(Action::ReadAgain(writer));
                    if is_worker && version < state.version {
                        actions.push(Action::LeaveNote(writer));
                    }
                }
                Step::Settled(_) => actions.push(Action::Finish(writer)),
            }
            if state.writers[writer] != Step::Idle && state.deaths < MAX_DEATHS {
                actions.push(Action::Die(writer));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Command => {
                next.version += 1;
                next.write_note();
                next.has_command_run = true;
            }
            Action::Commit(worker) => {
                let is_repeated = next.is_committed[worker];
                next.version += u8::from(!is_repeated);
                next.is_committed[worker] = true;
                let is_passed_over = is_repeated && self.is(Mutant::RedeliveredPublishesNothing);
                next.writers[worker] =
                    if is_passed_over { Step::Settled(next.version) } else { Step::Committed };
            }
            Action::Read(writer) => {
                if writer == PUBLISHER {
                    next.noted = next.note;
                    if self.is(Mutant::NoteDeletedFirst) {
                        next.note = None;
                    }
                }
                next.writers[writer] = Step::Read(next.version);
            }
            Action::Append(writer) => {
                let Step::Read(version) = next.writers[writer] else { return None };
                next.last = version;
                next.highest = next.highest.max(version);
                next.writers[writer] = if self.is(Mutant::NoReread) {
                    Step::Settled(version)
                } else {
                    Step::Acknowledged(version)
                };
            }
            Action::ReadAgain(writer) => {
                let Step::Acknowledged(version) = next.writers[writer] else { return None };
                next.writers[writer] = if version < next.version {
                    Step::Read(next.version)
                } else {
                    Step::Settled(version)
                };
            }
            Action::LeaveNote(worker) => {
                let Step::Acknowledged(version) = next.writers[worker] else { return None };
                next.write_note();
                next.writers[worker] = Step::Settled(version);
            }
            Action::Finish(PUBLISHER) => {
                if next.note == next.noted || self.is(Mutant::NoteDeletedBlindly) {
                    next.note = None;
                }
                next.noted = None;
                next.writers[PUBLISHER] = Step::Idle;
            }
            Action::Finish(worker) => {
                next.is_offset_stored[worker] = true;
                next.writers[worker] = Step::Idle;
            }
            Action::Die(writer) => {
                next.deaths += 1;
                next.writers[writer] = Step::Idle;
                if writer == PUBLISHER {
                    next.noted = None;
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LAST_IS_HIGHEST, |_, state: &State| {
                !state.is_quiet() || (state.last == state.version && state.highest == state.last)
            }),
            Property::sometimes("everything is done", |_, state: &State| state.is_quiet()),
            Property::sometimes(
                "an older record is appended after a newer one",
                |_, state: &State| state.last < state.highest,
            ),
            Property::sometimes("everything is done after two deaths", |_, state: &State| {
                state.is_quiet() && state.deaths == MAX_DEATHS
            }),
        ]
    }
}

#[test]
fn the_last_record_has_the_last_version_in_all_reachable_states() {
    holds_in_all_states(Protocol(None), 1_000);
}

#[test]
fn without_a_second_read_an_older_record_stays_the_last() {
    breaks(Protocol(Some(Mutant::NoReread)), LAST_IS_HIGHEST);
}

#[test]
fn if_a_redelivered_batch_publishes_nothing_a_level_is_lost() {
    breaks(Protocol(Some(Mutant::RedeliveredPublishesNothing)), LAST_IS_HIGHEST);
}

#[test]
fn if_the_note_is_deleted_first_a_level_is_lost() {
    breaks(Protocol(Some(Mutant::NoteDeletedFirst)), LAST_IS_HIGHEST);
}

#[test]
fn if_a_newer_note_is_deleted_a_level_is_lost() {
    breaks(Protocol(Some(Mutant::NoteDeletedBlindly)), LAST_IS_HIGHEST);
}
