-- A key belongs to its caller; '' is the caller of a request without authentication. Until now the table had no rows. An ALTER cannot be
-- repeated, so it is left out where it has run.
SET @keys = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'idempotency_keys' AND column_name = 'caller'),
    'DO 0',
    'ALTER TABLE idempotency_keys
        ADD COLUMN caller VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL FIRST,
        DROP PRIMARY KEY,
        ADD PRIMARY KEY (caller, idempotency_key)');
PREPARE idempotency FROM @keys;
EXECUTE idempotency;
DEALLOCATE PREPARE idempotency;

-- Pending orders whose ids the scan of pending orders would pass over: their callers made the ids, long before or after the order was
-- placed. A row goes when its order is no longer pending. Other orders have no row here.
CREATE TABLE IF NOT EXISTS unscanned_orders (
    order_id   BINARY(16)  NOT NULL PRIMARY KEY,
    created_at DATETIME(3) NOT NULL
) ENGINE = InnoDB;
