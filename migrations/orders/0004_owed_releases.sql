-- Releases that are owed: orders that failed or were cancelled and whose stock must be released. A row goes when the worker has
-- reported RELEASED. Apart from the outbox, so that orders that are placed pay nothing for it.
-- `sent`: how often the RELEASE was published. `due_at`: when it is published next; NULL once the order is beyond the horizon.
CREATE TABLE IF NOT EXISTS owed_releases (
    order_id BINARY(16)   NOT NULL PRIMARY KEY,
    owed_at  DATETIME(3)  NOT NULL,
    sent     INT UNSIGNED NOT NULL DEFAULT 0,
    due_at   DATETIME(3)  NULL,
    KEY by_due (due_at)
) ENGINE = InnoDB;

-- Until now a RELEASE was in the outbox, and only until the broker had acknowledged it.
INSERT IGNORE INTO owed_releases (order_id, owed_at, due_at)
SELECT order_id, created_at, visible_at FROM outbox WHERE kind = 'RELEASE';

-- Those alone that were copied: another may be committed meanwhile.
DELETE b FROM outbox AS b JOIN owed_releases AS r ON r.order_id = b.order_id WHERE b.kind = 'RELEASE';
