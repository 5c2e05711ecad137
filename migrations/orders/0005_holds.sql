-- An order may hold its stock for a while: RESERVED. `hold_seconds` is what the caller asked for. `is_hold_confirmed`: the order was
-- confirmed while it was pending, so it is completed once it is decided. An ALTER cannot be repeated, so it is left out where it has run.
-- The column keeps its character set, which `setup` may have changed: MariaDB does not change it in an instant.
SET @charset = (
    SELECT CONCAT('CHARACTER SET ', character_set_name, ' COLLATE ', collation_name) FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'orders' AND column_name = 'status');
SET @holds = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'orders' AND column_name = 'hold_seconds'),
    'DO 0',
    CONCAT('ALTER TABLE orders
        MODIFY status ENUM (''PENDING'', ''COMPLETED'', ''FAILED'', ''CANCELLED'', ''RESERVED'') ', @charset, '
            NOT NULL DEFAULT ''PENDING'',
        ADD COLUMN hold_seconds INT UNSIGNED NULL,
        ADD COLUMN is_hold_confirmed BOOLEAN NOT NULL DEFAULT FALSE,
        ALGORITHM = INSTANT'));
PREPARE holds FROM @holds;
EXECUTE holds;
DEALLOCATE PREPARE holds;

-- The open holds: a row for each RESERVED order. A transaction locks the order first, and then its hold.
CREATE TABLE IF NOT EXISTS holds (
    order_id   BINARY(16)  NOT NULL PRIMARY KEY,
    expires_at DATETIME(3) NOT NULL,
    KEY by_expiry (expires_at)
) ENGINE = InnoDB;

-- Moves of orders that `order-status` does not report yet, and that no message there has named. A row goes when the broker has
-- acknowledged the announcement. `visible_at` is a lease, as in the outbox. Apart from the outbox, so that a mass of them stops no order.
CREATE TABLE IF NOT EXISTS announcements (
    order_id    BINARY(16) NOT NULL,
    status      ENUM ('COMPLETED', 'CANCELLED') NOT NULL,
    source      ENUM ('ingest', 'compensator') NOT NULL,
    occurred_at DATETIME(3) NOT NULL,
    visible_at  DATETIME(3) NOT NULL,
    PRIMARY KEY (order_id, status),
    KEY by_lease (visible_at)
) ENGINE = InnoDB;
