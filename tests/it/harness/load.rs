//! Orders as clients place them, and what they were told.

use futures::{StreamExt as _, stream};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use stocklock::domain::Lines;

/// Places orders over HTTP, some of them at once. Answers the ids of the orders that the server
/// acknowledged. An order that no server acknowledges is not placed again.
pub(crate) async fn place_all(url: &str, bodies: &[Value], at_once: usize) -> Vec<String> {
    let client = Client::new();
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
