"""Panels that several dashboards have, and short forms of queries."""

from grafana import Panel, Query


def rate(metric, by, labels=""):
    return f"sum by ({by}) (rate({metric}{labels}[$__rate_interval]))"


def total_rate(metric, labels=""):
    return f"sum(rate({metric}{labels}[$__rate_interval]))"


def quantile(share, metric, by=""):
    labels = f"le, {by}" if by else "le"
    buckets = f"sum by ({labels}) (rate({metric}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric):
    return quantiles_by(metric, "", (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)))


def quantiles_by(metric, by, shares=(("p50", 0.5), ("p99", 0.99))):
    prefix = f"{{{{{by}}}}}, " if by else ""
    return tuple(Query(quantile(share, metric, by), prefix + name) for name, share in shares)


def lag_seconds(**how):
    return Panel(
        "Oldest unhandled message",
        "Age of the oldest message of a topic that no consumer has handled.",
        "s",
        (Query("max by (topic) (stocklock_consumer_lag_seconds)", "{{topic}}"),),
        warn=60,
        bad=600,
        **how,
    )


def order_latency(**how):
    return Panel(
        "Order latency",
        "Time from the acceptance of an order to its decision. The objective is 1 s for 99 %.",
        "s",
        quantiles("stocklock_order_latency_seconds"),
        bad=1,
        **how,
    )


def dependencies_up(**how):
    return Panel(
        "Dependencies",
        "1 if all processes can use the dependency, 0 if one cannot.",
        "none",
        (Query("min by (dependency) (stocklock_dependency_up)", "{{dependency}}"),),
        most=1,
        **how,
    )


def redis_masters(**how):
    return Panel(
        "Redis masters",
        "1 if all workers can lock keys on the master, 0 if one cannot.",
        "none",
        (Query("min by (master) (stocklock_redis_master_up)", "{{master}}"),),
        most=1,
        **how,
    )


def retries(**how):
    return Panel(
        "Repeated attempts",
        "Attempts that were repeated after a failure of the dependency.",
        "ops",
        (Query(rate("stocklock_retries_total", "dependency"), "{{dependency}}"),),
        **how,
    )


def outbox(**how):
    return Panel(
        "Outbox",
        "Events that wait for the broker. At the limit ingest answers 503.",
        "short",
        (
            Query("max(stocklock_outbox_pending)", "pending"),
            Query("min(stocklock_outbox_max)", "limit"),
        ),
        **how,
    )
