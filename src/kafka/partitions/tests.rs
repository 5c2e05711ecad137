use std::thread;

use super::*;

#[test]
fn a_revoked_partition_is_drained_and_then_fenced() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0, 1]);
    let assignment = partitions.assignment(0).unwrap();
    let batch = HashMap::from([(0, assignment)]);
    assert_eq!(partitions.begin_batch(&batch), [0]);
    thread::scope(|scope| {
        let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(10)));
        while !partitions.lock().owned[&0].draining {
            thread::yield_now();
        }
        assert!(
            partitions.begin_batch(&batch).is_empty(),
            "a draining partition gives no new batch"
        );
        assert!(
            partitions.is_owned(0, assignment),
            "the batch in flight may still store its offset"
        );
        partitions.end_batch(&batch);
        assert!(revoked.join().unwrap());
    });
    assert!(!partitions.is_owned(0, assignment));
    assert!(partitions.assignment(1).is_some());
}

#[test]
fn a_revocation_does_not_wait_for_a_batch_of_a_halted_lane() {
    let partitions = Partitions::new(2);
    partitions.assign(&[0, 1]);
    for partition in [0, 1] {
        partitions
            .begin_batch(&HashMap::from([(partition, partitions.assignment(partition).unwrap())]));
    }
    thread::scope(|scope| {
        let revoked = scope.spawn(|| partitions.revoke(&[1], Duration::from_secs(60)));
        partitions.set_halted(1, true);
        assert!(revoked.join().unwrap());
    });
    assert!(!partitions.revoke(&[0], Duration::from_millis(1)), "the other lane goes on");
}

#[test]
fn a_truncated_partition_stores_offsets_from_where_it_begins_again() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0]);
    let before = partitions.assignment(0).unwrap();
    assert_eq!(partitions.polled(0, 99), Polled::InOrder(before));
    assert_eq!(partitions.done(0, before, 100, None), Some(100));
    assert!(partitions.is_all_done(0));

    assert_eq!(partitions.polled(0, 10), Polled::Truncated);
    assert_eq!(partitions.restart(0, 10), 10, "all before it is done");
    let after = partitions.assignment(0).unwrap();
    assert_eq!(partitions.polled(0, 10), Polled::InOrder(after));

    assert!(!partitions.is_all_done(0));
    assert_eq!(partitions.committed_too_far(0, 100, None), None, "nothing is done yet");
    assert_eq!(partitions.done(0, before, 100, None), None, "its messages are gone");
    assert_eq!(partitions.done(0, after, 11, None), Some(11));
    assert!(partitions.is_all_done(0));
    assert_eq!(partitions.committed_too_far(0, 100, None), Some(11));
    assert_eq!(partitions.committed_too_far(0, 11, None), None);
}

#[test]
fn the_end_of_a_partition_shows_that_the_committed_offset_is_beyond_it() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0]);
    assert_eq!(partitions.committed_too_far(0, 10, None), None, "the end is not known");
    assert_eq!(partitions.committed_too_far(0, 10, Some(10)), None);
    assert_eq!(partitions.committed_too_far(0, 10, Some(4)), Some(4));
    let assignment = partitions.assignment(0).unwrap();
    assert_eq!(partitions.polled(0, 19), Polled::InOrder(assignment));
    assert_eq!(partitions.committed_too_far(0, 10, Some(20)), None);
    assert_eq!(partitions.committed_too_far(0, 10, Some(4)), Some(4));

    assert_eq!(partitions.done(0, assignment, 20, Some(2)), Some(2));

    assert_eq!(partitions.committed_too_far(0, 10, Some(4)), Some(2), "the rest is not done");
}

#[test]
fn a_truncated_partition_is_read_from_its_first_undone_message() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0, 1]);
    let before = partitions.assignment(0).unwrap();
    for partition in [0, 1] {
        for offset in 40..150 {
            partitions.polled(partition, offset);
        }
    }
    partitions.done(0, before, 50, None);
    for (partition, undone) in [(0, 50), (1, 40)] {
        assert_eq!(partitions.polled(partition, 120), Polled::Truncated);

        assert_eq!(partitions.restart(partition, 120), undone);

        assert!(
            !partitions.is_owned(partition, before),
            "messages of the former assignment are dropped"
        );
        let after = partitions.assignment(partition).unwrap();
        assert_eq!(partitions.polled(partition, undone), Polled::InOrder(after));
        assert_eq!(partitions.polled(partition, undone - 9), Polled::Truncated);
        assert_eq!(
            partitions.restart(partition, undone - 9),
            undone - 9,
            "the log is truncated once more"
        );
    }
}

#[test]
fn dead_letters_of_a_partition_that_is_revoked_do_not_limit_it() {
    let (partitions, now) = (Partitions::new(1), Instant::now());
    partitions.assign(&[0]);
    let assignment = partitions.assignment(0).unwrap();
    let batch = HashMap::from([(0, assignment)]);
    partitions.begin_batch(&batch);
    thread::scope(|scope| {
        let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(60)));
        while !partitions.lock().owned[&0].draining {
            thread::yield_now();
        }
        partitions.add_letters(0, assignment, 10_000, now);
        partitions.end_batch(&batch);
        assert!(revoked.join().unwrap());
    });

    partitions.add_letters(0, assignment, 10_000, now);

    assert!(!partitions.throttle.is_active());
    partitions.assign(&[0]);
    partitions.add_letters(0, partitions.assignment(0).unwrap(), 10_000, now);
    assert!(partitions.throttle.is_active());
}

#[test]
fn a_partition_with_a_deferred_message_is_not_all_done() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0]);
    let assignment = partitions.assignment(0).unwrap();
    for offset in [0, 1] {
        assert_eq!(partitions.polled(0, offset), Polled::InOrder(assignment));
    }
    assert_eq!(partitions.done(0, assignment, 2, Some(0)), Some(0));
    assert!(!partitions.is_all_done(0));
    assert_eq!(partitions.done(0, assignment, 1, None), Some(2));
    assert!(partitions.is_all_done(0));
}

#[test]
fn a_batch_that_outlasts_the_deadline_is_fenced() {
    let partitions = Partitions::new(1);
    partitions.assign(&[0]);
    let batch = HashMap::from([(0, partitions.assignment(0).unwrap())]);
    partitions.begin_batch(&batch);
    assert!(!partitions.revoke(&[0], Duration::from_millis(1)));
    partitions.assign(&[0]);
    assert!(!partitions.is_owned(0, batch[&0]), "an offset of the former assignment is dropped");
    partitions.end_batch(&batch);
}
