from common import quantiles_by, rate, redis_masters, total_rate
from grafana import Dashboard, Panel, Query, Row

LOCKS = Row(
    "Locks",
    (
        Panel(
            "Wait for the locks of a batch",
            "Time until a batch holds its locks.",
            "s",
            quantiles_by("stocklock_lock_wait_seconds", "strategy"),
        ),
        Panel(
            "Time that locks are held",
            "Time that a batch holds its locks. Beyond lock.ttl a lock is lost.",
            "s",
            quantiles_by("stocklock_lock_hold_seconds", "strategy"),
        ),
        Panel(
            "Batches",
            "Batches that acquired their locks, by strategy.",
            "ops",
            (Query(rate("stocklock_lock_wait_seconds_count", "strategy"), "{{strategy}}"),),
        ),
        Panel(
            "Failures",
            "Locks that others hold (contended), that no majority gave (unavailable), or that were"
            " lost.",
            "ops",
            (Query(rate("stocklock_lock_failures_total", "cause"), "{{cause}}"),),
        ),
        Panel(
            "Stale writes",
            "Batches that the database refused, because other writers had changed the stock.",
            "ops",
            (Query(total_rate("stocklock_stale_writes_rejected_total"), "refused"),),
        ),
        Panel(
            "Lanes that use row locks instead",
            "Lanes that have fallen back, because no majority of the Redis masters answers.",
            "none",
            (Query("sum(stocklock_lock_fallback)", "lanes"),),
            warn=1,
        ),
        redis_masters(),
        Panel(
            "Repeated attempts at Redis",
            "Attempts that were repeated after a failure of Redis.",
            "ops",
            (
                Query(total_rate("stocklock_retries_total", '{dependency="redis"}'), "redis"),
            ),
        ),
    ),
)

DASHBOARD = Dashboard(
    "locks",
    "stocklock / Locks",
    "What the locks of both strategies cost, and whether they hold.",
    (LOCKS,),
)
