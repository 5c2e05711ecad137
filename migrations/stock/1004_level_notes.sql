-- Products whose level a process must still publish. At most one row a product, with a new id for each note.
-- A worker deletes the row once the broker has acknowledged a level that was read after the note.
CREATE TABLE IF NOT EXISTS level_notes (
    product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    note_id    BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB;
