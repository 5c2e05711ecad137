from common import dependencies_up, quantile, rate, redis_masters, retries
from grafana import Dashboard, Panel, Query, Row

SERVERS = Row(
    "Servers",
    (
        dependencies_up(),
        redis_masters(),
        retries(),
        Panel(
            "Processes without a dependency",
            "Processes that cannot use the dependency.",
            "none",
            (
                Query(
                    "count by (dependency) (stocklock_dependency_up)"
                    " - sum by (dependency) (stocklock_dependency_up)",
                    "{{dependency}}",
                ),
            ),
            bad=1,
        ),
    ),
)

DATABASES = Row(
    "Databases",
    (
        Panel(
            "Transactions, p99",
            "Time of a transaction, with the wait for a connection and all attempts.",
            "s",
            (Query(quantile(0.99, "stocklock_transaction_seconds", "name"), "{{name}}"),),
        ),
        Panel(
            "Transactions",
            "Transactions in a second, by name.",
            "ops",
            (Query(rate("stocklock_transaction_seconds_count", "name"), "{{name}}"),),
        ),
        Panel(
            "Connections",
            "Connections to the stores, used and idle.",
            "short",
            (Query("sum by (store, state) (stocklock_pool_connections)", "{{store}}, {{state}}"),),
            stacked=True,
        ),
    ),
)

PROCESSES = Row(
    "Processes",
    (
        Panel(
            "Ready",
            "Processes that are ready, by job.",
            "none",
            (Query("sum by (job) (stocklock_ready)", "{{job}}"),),
        ),
        Panel(
            "Memory",
            "Resident memory of a process.",
            "bytes",
            (Query("process_resident_memory_bytes", "{{job}} {{pod}} {{instance}}"),),
        ),
        Panel(
            "Processors",
            "Processor time that a process uses in a second.",
            "s",
            (
                Query(
                    "rate(process_cpu_seconds_total[$__rate_interval])",
                    "{{job}} {{pod}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Open files",
            "Open files and sockets of a process, as a share of its limit.",
            "percentunit",
            (Query("process_open_fds / process_max_fds", "{{job}} {{pod}} {{instance}}"),),
            warn=0.8,
            bad=0.95,
        ),
        Panel(
            "Versions",
            "Processes of each version.",
            "none",
            (Query("count by (version) (stocklock_build_info)", "{{version}}"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    "dependencies",
    "stocklock / Dependencies",
    "Kafka, the databases and Redis as the processes see them, and the processes themselves.",
    (SERVERS, DATABASES, PROCESSES),
)
