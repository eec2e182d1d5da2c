-- What the fifth version of the store adds: which data of layer packs delivered files have, so that
-- a delivery sends only what its system does not have in another image.

ALTER TABLE images ADD COLUMN sha256 TEXT AS (json_extract(document, '$.sha256'));

-- The records of a file.
CREATE INDEX images_of_file ON images (sha256, status) WHERE sha256 IS NOT NULL;

-- Where the data of packs is in a file, and when that was saved last.
CREATE TABLE file_ranges (
    sha256 TEXT PRIMARY KEY NOT NULL,
    saved_at REAL NOT NULL,
    content BLOB NOT NULL
);
CREATE INDEX file_ranges_by_age ON file_ranges (saved_at, sha256);

-- How many bytes of the data of a pack a file has.
CREATE TABLE file_data (
    data TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (data, sha256)
) WITHOUT ROWID;
CREATE INDEX file_data_of_file ON file_data (sha256);

CREATE TRIGGER file_ranges_deleted AFTER DELETE ON file_ranges BEGIN
    DELETE FROM file_data WHERE sha256 = old.sha256;
END;
