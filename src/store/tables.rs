//! The tables of both stores, as the reference describes them. An integration test compares
//! `docs/reference/tables.md` with what `setup` makes on each database.

/// A table of a store.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) rows: &'static str,
    /// The setting that bounds the age of its rows, or what else removes them.
    pub(crate) removed: &'static str,
    pub(crate) readers: &'static str,
    /// Each with its name, its type and its meaning.
    pub(crate) columns: &'static [[&'static str; 3]],
}

const OURS: &str = "stocklock alone";

/// The tables of the order store. `setup` also makes `_sqlx_migrations`, its list of migrations.
pub(crate) const ORDER_STORE: &[Table] = &[
    Table {
        name: "orders",
        rows: "an order and its state",
        removed: "`retention.orders`, once it is final and owes no release; by compensators",
        readers: "every system: `order_id`, `status`, `reason`, `created_at`",
        columns: &[
            ["order_id", "BINARY(16)", "UUIDv7; the primary key"],
            ["status", "ENUM", "`PENDING`, `RESERVED`, `COMPLETED`, `FAILED` or `CANCELLED`"],
            ["reason", "VARCHAR(512)", "why the order failed or was cancelled"],
            ["reference", "VARCHAR(128)", "the caller's own"],
            ["customer_id", "VARCHAR(128)", "the caller's own"],
            ["lines", "TEXT", "JSON, `[[\"sku-1\",2],…]`, as the caller ordered"],
            ["created_at", "DATETIME(3)", "when ingest accepted the order, UTC"],
            ["updated_at", "DATETIME(3)", "when the state last changed, UTC"],
            ["hold_seconds", "INT UNSIGNED", "the hold that the caller asked for; NULL: none"],
            ["is_hold_confirmed", "TINYINT", "1: confirmed while it was pending"],
        ],
    },
    Table {
        name: "outbox_groups",
        rows: "orders that were committed together, whose events the topic `orders` still lacks",
        removed: "once the broker has acknowledged all its events",
        readers: OURS,
        columns: &[
            ["group_id", "BINARY(16)", "the primary key: the lowest of its order ids"],
            ["order_ids", "MEDIUMBLOB", "the ids, 16 bytes each"],
            ["orders", "INT UNSIGNED", "how many"],
            ["created_at", "DATETIME(3)", "when the orders were committed, UTC"],
            ["visible_at", "DATETIME(3)", "a lease: until then, one process publishes the group"],
            ["traces", "MEDIUMBLOB", "the traces of its sampled orders; NULL: none is sampled"],
        ],
    },
    Table {
        name: "owed_releases",
        rows: "a failed or cancelled order whose release no worker has reported as done",
        removed: "once a worker has reported `RELEASED`, or by `stocklock releases dismiss`",
        readers: OURS,
        columns: &[
            ["order_id", "BINARY(16)", "the primary key"],
            ["owed_at", "DATETIME(3)", "when the order moved, UTC"],
            ["sent", "INT UNSIGNED", "how often the RELEASE was published"],
            ["due_at", "DATETIME(3)", "when it is published next, UTC; NULL: it has expired"],
        ],
    },
    Table {
        name: "holds",
        rows: "an order that is `RESERVED`",
        removed: "once the hold is confirmed, cancelled, failed or expired",
        readers: OURS,
        columns: &[
            ["order_id", "BINARY(16)", "the primary key"],
            ["expires_at", "DATETIME(3)", "when the hold ends, UTC"],
        ],
    },
    Table {
        name: "announcements",
        rows: "a move that the topic `order-status` does not report yet",
        removed: "once the broker has acknowledged the announcement",
        readers: OURS,
        columns: &[
            ["order_id", "BINARY(16)", "with `status` the primary key"],
            ["status", "ENUM", "`COMPLETED` or `CANCELLED`"],
            ["source", "ENUM", "`ingest` or `compensator`"],
            ["occurred_at", "DATETIME(3)", "when the order moved, UTC"],
            ["visible_at", "DATETIME(3)", "a lease: until then, one process publishes it"],
        ],
    },
    Table {
        name: "idempotency_keys",
        rows: "a request that had an `Idempotency-Key`, and its order",
        removed: "`retention.idempotency_keys`; by compensators",
        readers: OURS,
        columns: &[
            ["caller", "VARCHAR(64)", "with `idempotency_key` the primary key; empty: anonymous"],
            ["idempotency_key", "VARCHAR(255)", "the key that the caller sent"],
            ["request_sha256", "BINARY(32)", "the request that the key stands for"],
            ["order_id", "BINARY(16)", "the order that the key stands for"],
            ["created_at", "DATETIME(3)", "when ingest accepted the order, UTC"],
        ],
    },
    Table {
        name: "unscanned_orders",
        rows: "a pending order whose id the scan of pending orders would pass over",
        removed: "once the order is no longer pending, or too old to be decided; by ingest",
        readers: OURS,
        columns: &[
            ["order_id", "BINARY(16)", "the primary key"],
            ["created_at", "DATETIME(3)", "when ingest accepted the order, UTC"],
        ],
    },
    Table {
        name: "order_horizon",
        rows: "one",
        removed: "never",
        readers: OURS,
        columns: &[
            ["id", "TINYINT", "1"],
            ["purged_below", "BINARY(16)", "orders below this id are purged, if not pending"],
        ],
    },
];

/// The tables of the stock store, the ledger.
pub(crate) const STOCK_STORE: &[Table] = &[
    Table {
        name: "products",
        rows: "a product and what is available of it",
        removed: "never",
        readers: "every system: `product_id`, `name`, `available`",
        columns: &[
            ["product_id", "VARCHAR(64)", "the primary key, ordered by bytes"],
            ["name", "VARCHAR(255)", "for people"],
            ["available", "BIGINT", "units on the shelf, 0 or more"],
            ["version", "BIGINT", "rises by one with every write; a decision names it"],
            ["updated_at", "DATETIME(3)", "when the row was last written, UTC"],
        ],
    },
    Table {
        name: "order_outcomes",
        rows: "what was decided about an order; the ledger of orders",
        removed: "`retention.outcomes`; by workers",
        readers: OURS,
        columns: &[
            ["order_id", "BINARY(16)", "the primary key: it prevents a second decision"],
            ["outcome", "ENUM", "`COMPLETED`, `FAILED` or `RELEASED`"],
            ["reason", "VARCHAR(64)", "why the worker refused the order"],
            ["lines", "TEXT", "JSON, the units that were deducted, one entry a product"],
            ["decided_at", "DATETIME(3)", "UTC"],
            ["released_at", "DATETIME(3)", "UTC; NULL: not released"],
        ],
    },
    Table {
        name: "stock_movements",
        rows: "a change of stock that no order made; the ledger of supply",
        removed: "`retention.movements`; by workers",
        readers: OURS,
        columns: &[
            ["movement_id", "BIGINT", "the primary key, rising"],
            ["product_id", "VARCHAR(64)", "the product"],
            ["kind", "ENUM", "`IMPORT`, `RESTOCK` or `ADJUST`"],
            ["quantity", "BIGINT", "units; negative if stock was removed"],
            ["created_at", "DATETIME(3)", "UTC"],
            ["reason", "VARCHAR(255)", "of an adjustment: why; NULL: an import or a restock"],
            ["reference", "VARCHAR(128)", "of an adjustment: the caller's own"],
            ["request_id", "VARCHAR(128)", "of an adjustment: its request"],
        ],
    },
    Table {
        name: "adjustment_requests",
        rows: "a request to adjust stock that was done",
        removed: "`retention.movements`; by workers",
        readers: OURS,
        columns: &[
            ["request_id", "VARCHAR(128)", "the primary key: it prevents a second time"],
            ["request_sha256", "BINARY(32)", "the content of the request"],
            ["levels", "MEDIUMTEXT", "JSON, `[[9,4],…]`: available and version, its answer"],
            ["created_at", "DATETIME(3)", "when it was done, UTC"],
        ],
    },
    Table {
        name: "level_notes",
        rows: "a product whose level `topics.stock_levels` may lack",
        removed: "once the broker has acknowledged the level; by workers",
        readers: OURS,
        columns: &[
            ["product_id", "VARCHAR(64)", "the primary key"],
            ["note_id", "BIGINT UNSIGNED", "another one for each note of the product"],
        ],
    },
    Table {
        name: "ledger_balances",
        rows: "the sums of a product's purged movements and outcomes",
        removed: "never",
        readers: OURS,
        columns: &[
            ["product_id", "VARCHAR(64)", "the primary key"],
            ["supplied", "BIGINT", "units of purged movements"],
            ["held", "BIGINT", "units of purged `COMPLETED` outcomes"],
        ],
    },
    Table {
        name: "ledger_horizon",
        rows: "one",
        removed: "never",
        readers: OURS,
        columns: &[
            ["id", "TINYINT", "1"],
            ["purged_below", "BINARY(16)", "outcomes below this id are purged, none is written"],
        ],
    },
];
