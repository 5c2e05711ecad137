-- Orders as clients placed them, and what became of them.
-- `lines` is JSON, [["sku-1",2],…], exactly as ordered: one row an order is what the write rate rests on.
-- Order ids are UUIDv7, so the primary key is also the order of age: retention deletes from its low end in batches.
CREATE TABLE IF NOT EXISTS orders (
    order_id    BINARY(16)   NOT NULL PRIMARY KEY,
    status      ENUM ('PENDING', 'COMPLETED', 'FAILED', 'CANCELLED') NOT NULL DEFAULT 'PENDING',
    reason      VARCHAR(512) CHARACTER SET utf8mb4 NULL,
    reference   VARCHAR(128) CHARACTER SET utf8mb4 NULL,
    customer_id VARCHAR(128) CHARACTER SET utf8mb4 NULL,
    `lines`     TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at  DATETIME(3)  NOT NULL,
    updated_at  DATETIME(3)  NOT NULL
) ENGINE = InnoDB;

-- Events that the `orders` topic still lacks. A row goes when the broker has acknowledged its event, so the table stays
-- as small as what is in flight. `visible_at` is a lease: whoever may publish the row holds it off for others until then.
CREATE TABLE IF NOT EXISTS outbox (
    order_id   BINARY(16) NOT NULL,
    kind       ENUM ('PLACED', 'RELEASE') NOT NULL,
    created_at DATETIME(3) NOT NULL,
    visible_at DATETIME(3) NOT NULL,
    PRIMARY KEY (order_id, kind)
) ENGINE = InnoDB;

-- The order that an Idempotency-Key stands for. Retention deletes by `created_at`.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    idempotency_key VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    request_sha256  BINARY(32)  NOT NULL,
    order_id        BINARY(16)  NOT NULL,
    created_at      DATETIME(3) NOT NULL,
    KEY by_age (created_at)
) ENGINE = InnoDB;
