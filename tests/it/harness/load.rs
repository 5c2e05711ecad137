//! Orders as clients place them, and what they were told.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use reqwest::StatusCode;
use serde_json::Value;
use stocklock::domain::Lines;
use tokio::{sync::watch, task::JoinHandle};

use super::{Role, http_client, wait_until};

/// Places orders over HTTP, some of them at once. Answers the ids of the orders that the server
/// acknowledged. An order that no server acknowledges is not placed again.
pub(crate) async fn place_all(url: &str, bodies: &[Value], at_once: usize) -> Vec<String> {
    let client = http_client();
    let placing = stream::iter(bodies.to_vec()).map(|body| {
        let request = client.post(format!("{url}/v1/orders")).json(&body);
        async move {
            let response = request.send().await.ok()?;
            assert_eq!(response.status(), StatusCode::ACCEPTED);
            // The status line may have come and the body not.
            let answer: Value = response.json().await.ok()?;
            Some(answer["order_id"].as_str().expect("an id").to_owned())
        }
    });
    placing.buffer_unordered(at_once).filter_map(futures::future::ready).collect().await
}

/// The body of a request for these lines.
pub(crate) fn body(lines: &Lines) -> Value {
    let lines: Vec<_> =
        lines.as_slice().iter().map(|line| (line.product_id().as_str(), line.quantity())).collect();
    super::lines(&lines)
}

/// Orders of one unit of `a`, some a second, whether the server takes them or not.
pub(crate) struct SteadyLoad {
    stop: watch::Sender<bool>,
    placing: JoinHandle<i64>,
}

impl SteadyLoad {
    pub(crate) fn on(role: &Role) -> Self {
        let (stop, is_over) = watch::channel(false);
        let (client, url) = (http_client(), format!("{}/v1/orders", role.http));
        let placing = tokio::spawn(async move {
            let mut acknowledged = 0;
            while !*is_over.borrow() {
                let order = client.post(&url).json(&super::lines(&[("a", 1)])).send().await;
                let is_acknowledged = order.is_ok_and(|answer| answer.status() == 202);
                acknowledged += i64::from(is_acknowledged);
                // The rate of the load.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acknowledged
        });
        Self { stop, placing }
    }

    /// Stops, and returns how many orders the server acknowledged.
    pub(crate) async fn stop(self) -> i64 {
        self.stop.send_replace(true);
        self.placing.await.expect("no panic")
    }
}

/// Waits until a role decides orders that it had not decided before.
pub(crate) async fn decides_more(role: &Role) {
    let decided = async || role.count("stocklock_orders_decided_total", "").await;
    let before = decided().await;
    wait_until("orders are decided", async || decided().await > before + 10).await;
}
