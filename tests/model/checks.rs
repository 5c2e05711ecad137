//! How a model is checked.

use std::{collections::BTreeSet, fmt::Debug, hash::Hash, thread};

use stateright::{Checker as _, HasDiscoveries, Model};

/// Visits all reachable states. Fails the test unless every property holds and more than `states`
/// different states were found. Prints a way to the first state that breaks a property.
pub(crate) fn holds_in_all_states<M>(protocol: M, states: usize)
where
    M: Model<
            State: Clone + Debug + Hash + PartialEq + Send + Sync,
            Action: Clone + Debug + PartialEq,
        > + Send
        + Sync
        + 'static,
{
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let checker = protocol.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_bfs().join();
    let (all, unique) = (checker.state_count(), checker.unique_state_count());
    println!("{all} states, {unique} of them unique");

    checker.assert_properties();
    assert!(checker.is_done() && unique > states, "only {unique} states");
}

/// Fails the test unless a protocol with a fault breaks the property. Prints the shortest way.
pub(crate) fn breaks<M>(protocol: M, property: &'static str)
where
    M: Model<
            State: Clone + Debug + Hash + PartialEq + Send + Sync,
            Action: Clone + Debug + PartialEq,
        > + Send
        + Sync
        + 'static,
{
    let names = BTreeSet::from([property]);
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyOf(names)).spawn_bfs().join();

    let path = checker.discovery(property).expect("the fault breaks the property");
    println!("{property}: {:?}", path.into_actions());
}
