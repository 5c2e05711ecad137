from common import dependencies_up, lag_seconds, order_latency, outbox, rate, total_rate
from grafana import Dashboard, Panel, Query, Row


def stat(title, description, unit, expr, **how):
    return Panel(
        title, description, unit, (Query(expr, title),), stat=True, width=4, height=4, **how
    )


NOW = Row(
    "Now",
    (
        stat(
            "Orders decided",
            "Orders that workers decide in a second.",
            "ops",
            total_rate("stocklock_orders_decided_total", '{outcome=~"COMPLETED|FAILED"}'),
        ),
        stat(
            "Requests that fail",
            "Share of the requests to ingest that are answered by 5xx.",
            "percentunit",
            total_rate("stocklock_http_requests_total", '{route=~"/v1/.*", status=~"5.."}')
            + " / "
            + total_rate("stocklock_http_requests_total", '{route=~"/v1/.*"}'),
            warn=0.001,
            bad=0.01,
            decimals=2,
        ),
        stat(
            "Oldest message",
            "Age of the oldest message that no consumer has handled, of any topic.",
            "s",
            "max(stocklock_consumer_lag_seconds)",
            warn=60,
            bad=600,
        ),
        stat(
            "Processes not ready",
            "Processes whose /readyz answers 503.",
            "none",
            "count(stocklock_ready) - sum(stocklock_ready)",
            warn=1,
            bad=2,
        ),
        stat(
            "Lanes halted",
            "Lanes that are halted by bad messages.",
            "none",
            "sum(stocklock_lanes_stopped)",
            bad=1,
        ),
        stat(
            "Dead letters in an hour",
            "Messages that were dead-lettered in the last hour.",
            "short",
            "sum(increase(stocklock_dead_letters_total[1h]))",
            warn=1,
            bad=100,
            decimals=0,
        ),
    ),
)

FLOW = Row(
    "Flow",
    (
        Panel(
            "Orders",
            "Orders that ingest accepts, that workers decide, and that reach their final state.",
            "ops",
            (
                Query(
                    total_rate("stocklock_orders_ingested_total", '{result="accepted"}'), "accepted"
                ),
                Query(
                    total_rate("stocklock_orders_decided_total", '{outcome=~"COMPLETED|FAILED"}'),
                    "decided",
                ),
                Query(
                    total_rate(
                        "stocklock_compensations_total", '{kind=~"completed|reserved|failed"}'
                    ),
                    "in the order store",
                ),
            ),
        ),
        order_latency(),
        Panel(
            "Answers of ingest",
            "Requests to the HTTP API, by status.",
            "reqps",
            (
                Query(
                    rate("stocklock_http_requests_total", "status", '{route=~"/v1/.*"}') + " > 0",
                    "{{status}}",
                ),
            ),
            stacked=True,
        ),
        lag_seconds(),
    ),
)

HEALTH = Row(
    "Health",
    (
        Panel(
            "Outcomes",
            "Decisions of the workers, and releases done.",
            "ops",
            (Query(rate("stocklock_orders_decided_total", "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        outbox(),
        dependencies_up(),
        Panel(
            "Processors",
            "Processor time that the processes use in a second.",
            "s",
            (Query(rate("process_cpu_seconds_total", "job"), "{{job}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    "overview",
    "stocklock / Overview",
    "Whether orders flow, how fast, and what is in their way.",
    (NOW, FLOW, HEALTH),
)
