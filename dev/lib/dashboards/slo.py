from common import order_latency, total_rate
from grafana import Dashboard, Panel, Query, Row

REQUESTS = 'stocklock_http_requests_total{route=~"/v1/.*"}[30d]'
ERRORS = 'stocklock_http_requests_total{route=~"/v1/.*", status=~"5.."}[30d]'
LATENCY = "stocklock_order_latency_seconds"
# The bucket of 1 s. Prometheus 2 keeps le="1", and Prometheus 3 makes it le="1.0".
IN_TIME = f'{LATENCY}_bucket{{le=~"1|1\\\\.0"}}'
WINDOWS = ("5m", "1h", "6h", "1d", "3d")


def left(bad_share, budget):
    """The share of the error budget that is left. Without events, all of it is left."""
    return f"1 - ({bad_share}) / {budget}"


def budget(title, description, expr):
    return Panel(
        title,
        description,
        "percentunit",
        (Query(expr, "left"),),
        stat=True,
        inverted=True,
        warn=0.1,
        bad=0.5,
        most=1,
        height=8,
        width=8,
        decimals=1,
    )


def burn_rate(title, what, record, share):
    return Panel(
        title,
        f"{what} 1 uses up the budget in exactly 30 days. The alerts begin at 1, 3, 6 and 14.4.",
        "none",
        tuple(
            Query(f"max(namespace:stocklock_{record}:ratio_rate{window}) / {share}", window)
            for window in WINDOWS
        ),
        warn=1,
        bad=6,
        width=16,
    )


AVAILABILITY = Row(
    "Ingest availability: 99.9 % of the requests to /v1/ are not answered by 5xx",
    (
        budget(
            "Budget left",
            "Share of the error budget of the last 30 days that is left.",
            left(f"sum(increase({ERRORS})) / sum(increase({REQUESTS}))", 0.001),
        ),
        burn_rate("Burn rate", "How fast errors use up the budget.", "ingest_errors", 0.001),
        Panel(
            "Requests and errors",
            "Requests to the API in a second, and those that were answered by 5xx.",
            "reqps",
            (
                Query(total_rate("stocklock_http_requests_total", '{route=~"/v1/.*"}'), "all"),
                Query(
                    total_rate(
                        "stocklock_http_requests_total", '{route=~"/v1/.*", status=~"5.."}'
                    ),
                    "5xx",
                ),
            ),
            width=24,
        ),
    ),
)

DECISIONS = Row(
    "Decision latency: 99 % of the orders are decided within 1 s",
    (
        budget(
            "Budget left",
            "Share of the error budget of the last 30 days that is left.",
            left(
                f"1 - sum(increase({IN_TIME}[30d])) / sum(increase({LATENCY}_count[30d]))",
                0.01,
            ),
        ),
        burn_rate(
            "Burn rate", "How fast late decisions use up the budget.", "slow_decisions", 0.01
        ),
        order_latency(width=24),
    ),
)

DASHBOARD = Dashboard(
    "slo",
    "stocklock / Objectives",
    "The objectives of the service, and how much of their error budgets is left.",
    (AVAILABILITY, DECISIONS),
)
