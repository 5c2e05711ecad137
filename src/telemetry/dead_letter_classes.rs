//! The classes of dead letters.

/// Why messages are dead-lettered. The name is the label `class` of `stocklock_dead_letters_total`,
/// and the header `stocklock.error.class` of the letter.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "docs/reference/dead-letters.md has the texts"))]
pub(crate) struct DeadLetterClass {
    pub(crate) name: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) remedy: &'static str,
}

/// Every class. A test fails if the source uses another one.
pub(crate) const DEAD_LETTER_CLASSES: [DeadLetterClass; 10] = [
    DeadLetterClass {
        name: "undecodable",
        cause: "The bytes are no value of this topic: no known framing, a broken datum, JSON with \
                an error (the text names line and column), or no value on `orders`.",
        remedy: "Correct the writer.",
    },
    DeadLetterClass {
        name: "unknown_schema",
        cause: "The value's header has a fingerprint, and stocklock knows no schema with it.",
        remedy: "Write with `schemas/*.avsc`, or name the schema in `topics.writer_schemas` and \
                 restart the role.",
    },
    DeadLetterClass {
        name: "unregistered_schema",
        cause: "The value's header has the id of a schema registry. Either no registry is \
                configured, or it has no Avro schema with that id, or the topic's schema cannot \
                read its values; the text says which.",
        remedy: "Set `schema_registry.url`, write with a registered schema that resolves, or name \
                 the schema as `ID=FILE` in `topics.writer_schemas` and restart the role.",
    },
    DeadLetterClass {
        name: "invalid",
        cause: "A value is outside its bounds: a quantity of 0, a `COMPLETED` or `RELEASED` whose \
                source may not report it, an order from more than a day ahead, an order request \
                that HTTP would refuse, an adjustment of an unknown product, an id of a request \
                that was done with other content.",
        remedy: "Correct the writer. For orders from the future, also compare the clocks.",
    },
    DeadLetterClass {
        name: "conflict",
        cause: "The stock does not allow an adjustment: a product has another version, or its \
                stock would fall below zero or rise above its bound.",
        remedy: "Read the product. Send a new request, or replay the letter once the stock \
                 allows it: a refused request does not bind its id.",
    },
    DeadLetterClass {
        name: "unknown_order",
        cause: "A status is of an order that the order store does not have.",
        remedy: "Correct the id. If a `worker` reports it, a failover has lost the order: see \
                 `docs/databases.md`.",
    },
    DeadLetterClass {
        name: "expired",
        cause: "The event's order is beyond the horizon, a failure comes too late for a \
                completed order, or a request is older than identities are kept.",
        remedy: "Check the clock of the role. If the message is really old, `stocklock stock \
                 restock` returns the units of a failed order.",
    },
    DeadLetterClass {
        name: "refused",
        cause: "The database will never accept the message: a CHECK, a trigger or a column \
                refuses it.",
        remedy: "Change what refuses it; the text has the server's error. A pending order is \
                 produced again. A status must be reported again.",
    },
    DeadLetterClass {
        name: "damaged",
        cause: "What a store has of this order is corrupt.",
        remedy: "Correct the order's row. A pending order is produced again.",
    },
    DeadLetterClass {
        name: "too_large",
        cause: "The topic of the statuses does not take the order's outcome, for its size.",
        remedy: "Raise `max.message.bytes` of the topic to 16,384 or more. The order stays \
                 `PENDING` and is produced again.",
    },
];
