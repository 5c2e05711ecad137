-- What was purged from the ledger: outcomes and movements leave their sums here, in the transaction that deletes them.
-- available = supplied + sum(stock_movements) - held - sum(lines of COMPLETED order_outcomes), for each product at any instant.
CREATE TABLE IF NOT EXISTS ledger_balances (
    product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    supplied   BIGINT NOT NULL,
    held       BIGINT NOT NULL
) ENGINE = InnoDB;

-- One row. Outcomes of orders below `purged_below` are gone, and none is written any more. Whoever purges holds the row's lock.
CREATE TABLE IF NOT EXISTS ledger_horizon (
    id           TINYINT    NOT NULL PRIMARY KEY,
    purged_below BINARY(16) NOT NULL
) ENGINE = InnoDB;

-- The lowest UUIDv7.
INSERT IGNORE INTO ledger_horizon (id, purged_below) VALUES (1, UNHEX('00000000000070008000000000000000'));
