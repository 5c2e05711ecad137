use chrono::Utc;

use super::*;
use crate::{
    domain::{Line, Lines, ProductId},
    store::NewOrder,
};

/// What the client receives if the task that commits ends without an answer.
async fn answer_of_lost_task(has_begun: bool) -> Result<Placed, SaveError> {
    let (queue, mut orders) = mpsc::channel::<QueuedOrder>(1);
    let committer = Committer {
        queue,
        deadline: Duration::from_secs(60),
        is_store_away: Arc::default(),
        abandoned: IntCounter::new("abandoned", "abandoned orders").unwrap(),
        _alive: Arc::default(),
    };
    let line = Line::new(ProductId::parse("a").unwrap(), 1).unwrap();
    let order = NewOrder {
        order_id: OrderId::generate(),
        reference: None,
        customer_id: None,
        hold_seconds: None,
        lines: Lines::new(vec![line]).unwrap(),
        accepted_at: Utc::now(),
    };
    let task = async {
        let queued = orders.recv().await.unwrap();
        drop(if has_begun { queued.begin(Instant::now()) } else { Some(queued) });
    };
    tokio::join!(committer.save(Placement { order, identity: None, trace: None }), task).0
}

#[tokio::test]
async fn an_order_of_a_lost_task_is_unknown_once_its_transaction_began() {
    assert!(matches!(answer_of_lost_task(true).await, Err(SaveError::CommitUnknown(_))));
    assert!(matches!(answer_of_lost_task(false).await, Err(SaveError::StoreAway)));
}

#[test]
fn an_error_says_that_nothing_was_saved_unless_that_is_unknown() {
    let refused = SaveError::RefusedByStore(Arc::new(StoreError::LocksLost));
    for error in [SaveError::QueueFull, SaveError::StoreAway, SaveError::DeadlinePassed, refused] {
        assert!(error.to_string().ends_with("; nothing was saved"), "{error}");
    }
    let unknown = SaveError::CommitUnknown(OrderId::generate());
    assert!(!unknown.to_string().contains("nothing was saved"), "{unknown}");
}
