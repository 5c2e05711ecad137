-- What is on the shelf. `version` rises by one with every write: a decision that read version n may only write over version n.
CREATE TABLE IF NOT EXISTS products (
    product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    name       VARCHAR(255) CHARACTER SET utf8mb4 NOT NULL,
    available  BIGINT NOT NULL,
    version    BIGINT NOT NULL DEFAULT 1,
    updated_at DATETIME(3) NOT NULL,
    CONSTRAINT available_is_not_negative CHECK (available >= 0)
) ENGINE = InnoDB;

-- What was decided about an order; the primary key is what makes a second decision impossible.
-- `lines` is JSON, [["sku-1",2],…], one entry a product: the order's movements. COMPLETED: they are held. RELEASED: they were
-- deducted and given back (empty when the release came before the order). FAILED: empty, nothing was moved.
-- Order ids are UUIDv7, so retention deletes from the low end of the primary key in batches.
CREATE TABLE IF NOT EXISTS order_outcomes (
    order_id    BINARY(16) NOT NULL PRIMARY KEY,
    outcome     ENUM ('COMPLETED', 'FAILED', 'RELEASED') NOT NULL,
    reason      VARCHAR(64) CHARACTER SET ascii NULL,
    `lines`     TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    decided_at  DATETIME(3) NOT NULL,
    released_at DATETIME(3) NULL
) ENGINE = InnoDB;

-- Every change of stock that no order made. The sum over a product, less what its outcomes hold, is what is available.
CREATE TABLE IF NOT EXISTS stock_movements (
    movement_id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    product_id  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    kind        ENUM ('IMPORT', 'RESTOCK', 'ADJUST') NOT NULL,
    quantity    BIGINT NOT NULL,
    created_at  DATETIME(3) NOT NULL,
    KEY by_product (product_id)
) ENGINE = InnoDB;
