-- Why stock was changed, and by which request; NULL where an import or a restock changed it. An ALTER cannot be repeated, so it is left
-- out where it has run.
SET @movements = IF(
    EXISTS (SELECT 1 FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'stock_movements' AND column_name = 'request_id'),
    'DO 0',
    'ALTER TABLE stock_movements
        ADD COLUMN reason     VARCHAR(255) CHARACTER SET utf8mb4 NULL,
        ADD COLUMN reference  VARCHAR(128) CHARACTER SET utf8mb4 NULL,
        ADD COLUMN request_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NULL,
        ALGORITHM = INSTANT');
PREPARE movements FROM @movements;
EXECUTE movements;
DEALLOCATE PREPARE movements;

-- The requests that were done. The primary key makes it impossible to do a request twice. `levels` is JSON, [[9,4],…]: what was available of
-- each product after the request, and the product's version, in the order of the request.
CREATE TABLE IF NOT EXISTS adjustment_requests (
    request_id     VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    request_sha256 BINARY(32) NOT NULL,
    levels         MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at     DATETIME(3) NOT NULL,
    KEY by_age (created_at)
) ENGINE = InnoDB;
