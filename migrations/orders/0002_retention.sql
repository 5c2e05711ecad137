-- One row. Orders below `purged_below` that were final are gone. Whoever purges holds the row's lock.
CREATE TABLE IF NOT EXISTS order_horizon (
    id           TINYINT    NOT NULL PRIMARY KEY,
    purged_below BINARY(16) NOT NULL
) ENGINE = InnoDB;

-- The lowest UUIDv7.
INSERT IGNORE INTO order_horizon (id, purged_below) VALUES (1, UNHEX('00000000000070008000000000000000'));
