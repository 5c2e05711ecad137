-- The events that the `orders` topic still lacks, a row for the orders that were committed together: one write a group instead of one
-- an order. The row goes when the broker has acknowledged all of its events. `group_id` is the lowest of its order ids. `order_ids` are
-- 16 bytes each. `visible_at` is a lease: until then, one process publishes the group.
CREATE TABLE IF NOT EXISTS outbox_groups (
    group_id   BINARY(16)   NOT NULL PRIMARY KEY,
    order_ids  MEDIUMBLOB   NOT NULL,
    orders     INT UNSIGNED NOT NULL,
    created_at DATETIME(3)  NOT NULL,
    visible_at DATETIME(3)  NOT NULL
) ENGINE = InnoDB;

-- Until now each event had a row of its own. The statement is left out where it has run and the table is gone.
SET @move = IF(
    EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'outbox'),
    'INSERT IGNORE INTO outbox_groups (group_id, order_ids, orders, created_at, visible_at)
     SELECT order_id, order_id, 1, created_at, visible_at FROM outbox WHERE kind = ''PLACED''',
    'DO 0');
PREPARE move FROM @move;
EXECUTE move;
DEALLOCATE PREPARE move;

DROP TABLE IF EXISTS outbox;
