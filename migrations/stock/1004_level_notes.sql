-- Products whose level a process must still publish: at this version, or a later one.
-- At most one row a product. A worker deletes the row once the broker has acknowledged such a level.
CREATE TABLE IF NOT EXISTS level_notes (
    product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    version    BIGINT NOT NULL
) ENGINE = InnoDB;
