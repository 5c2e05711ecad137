//! Faults of a world's dependencies, and what a role reports of them.

use super::{Proxy, Role, World, http_get};

/// A proxy before each Redis master of a world, and the URLs that lead through the proxies.
pub(crate) async fn proxies_of_masters(world: &World) -> (Vec<Proxy>, Vec<String>) {
    let (mut proxies, mut urls) = (Vec::new(), Vec::new());
    for master in &world.config.redis.urls {
        let (proxy, url) = Proxy::before(master.expose()).await;
        proxies.push(proxy);
        urls.push(url);
    }
    (proxies, urls)
}

/// The status and the text of a role's `/readyz`.
pub(crate) async fn readiness(role: &Role) -> (u16, String) {
    let answer = http_get(format!("{}/readyz", role.admin)).await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}
