from common import lag_seconds, outbox, quantile, quantiles, rate, total_rate
from grafana import Dashboard, Panel, Query, Row

INGEST = Row(
    "Ingest",
    (
        Panel(
            "Requests to place an order",
            "Accepted, replayed, invalid (422), rejected, or abandoned by the client.",
            "ops",
            (Query(rate("stocklock_orders_ingested_total", "result"), "{{result}}"),),
            stacked=True,
        ),
        Panel(
            "Time of an answer, p99",
            "Time until a request was answered, by route. It has the wait that Prefer asks for.",
            "s",
            (Query(quantile(0.99, "stocklock_http_request_seconds", "route"), "{{route}}"),),
        ),
        outbox(),
        Panel(
            "What waits in the order store",
            "Age of the oldest unpublished event, pending order and owed release.",
            "s",
            (
                Query("max(stocklock_outbox_oldest_seconds)", "unpublished event"),
                Query("max(stocklock_pending_oldest_seconds)", "pending order"),
                Query("max(stocklock_releases_owed_oldest_seconds)", "owed release"),
            ),
            bad=600,
        ),
        Panel(
            "Published again",
            "Pending orders and owed releases that were published again, or passed the horizon.",
            "ops",
            (
                Query(rate("stocklock_pending_orders_total", "result"), "pending, {{result}}"),
                Query(rate("stocklock_owed_releases_total", "result"), "release, {{result}}"),
            ),
        ),
        Panel(
            "Owed releases",
            "Releases that no worker has reported as done.",
            "short",
            (Query("max(stocklock_releases_owed)", "owed"),),
        ),
    ),
)

WORKERS = Row(
    "Workers",
    (
        lag_seconds(),
        Panel(
            "Unhandled messages",
            "Messages that no consumer has handled. Several processes may show one partition.",
            "short",
            (
                Query(
                    "sum by (topic) (max by (topic, partition) (stocklock_consumer_lag))",
                    "{{topic}}",
                ),
            ),
        ),
        Panel(
            "Orders of a batch",
            "Order events that a worker handles in one transaction.",
            "short",
            quantiles("stocklock_batch_orders"),
        ),
        Panel(
            "Stages of a batch, p99",
            "Time that a batch takes to lock, in its transaction, to unlock and to publish.",
            "s",
            (Query(quantile(0.99, "stocklock_batch_seconds", "stage"), "{{stage}}"),),
        ),
        Panel(
            "Levels of products",
            "Levels that the broker has acknowledged, and levels that wait.",
            "short",
            (
                Query(total_rate("stocklock_levels_published_total"), "published/s"),
                Query("max(stocklock_level_notes)", "waiting"),
            ),
        ),
        Panel(
            "Rebalances, errors and replacements",
            "Events of the consumer groups. Many of them slow down or halt the orders.",
            "ops",
            (
                Query(rate("stocklock_rebalances_total", "kind"), "rebalance, {{kind}}"),
                Query(rate("stocklock_poll_errors_total", "topic"), "poll error, {{topic}}"),
                Query(rate("stocklock_consumer_recreations_total", "topic"), "replaced, {{topic}}"),
            ),
        ),
    ),
)

AFTER = Row(
    "Compensators, dead letters and retention",
    (
        Panel(
            "Moves of orders",
            "Orders that compensators moved, releases owed and done, and tombstones.",
            "ops",
            (Query(rate("stocklock_compensations_total", "kind"), "{{kind}}"),),
        ),
        Panel(
            "Holds",
            "Orders that hold their stock.",
            "short",
            (Query("max(stocklock_holds_open)", "open"),),
        ),
        Panel(
            "Ends of holds",
            "Holds that were confirmed, cancelled, failed or expired, and late confirmations.",
            "ops",
            (
                Query(rate("stocklock_holds_closed_total", "how"), "{{how}}"),
                Query(
                    total_rate("stocklock_confirmations_too_late_total"), "confirmed too late"
                ),
            ),
        ),
        Panel(
            "Late holds",
            "How long the oldest due hold has been due.",
            "s",
            (Query("max(stocklock_hold_expiry_lag_seconds)", "due for"),),
            bad=60,
        ),
        Panel(
            "Dead letters",
            "Messages that were dead-lettered in a minute, by class.",
            "short",
            (
                Query(
                    "sum by (topic, class) (increase(stocklock_dead_letters_total[1m])) > 0",
                    "{{topic}}, {{class}}",
                ),
            ),
        ),
        Panel(
            "Halted lanes",
            "Lanes that are halted by bad messages.",
            "none",
            (Query("sum by (topic) (stocklock_lanes_stopped)", "{{topic}}"),),
            bad=1,
        ),
        Panel(
            "Deleted rows",
            "Old rows that retention deletes.",
            "ops",
            (Query(rate("stocklock_retention_deleted_total", "table"), "{{table}}"),),
        ),
        Panel(
            "Passes of retention",
            "Passes in an hour: complete, partial (more rows are left), or failed.",
            "short",
            (
                Query(
                    "sum by (store, result) (increase(stocklock_retention_passes_total[1h]))",
                    "{{store}}, {{result}}",
                ),
            ),
        ),
    ),
)

DASHBOARD = Dashboard(
    "pipeline",
    "stocklock / Pipeline",
    "Each step of an order, from the request to its final state.",
    (INGEST, WORKERS, AFTER),
)
