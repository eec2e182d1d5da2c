-- The store's tables. The document, in the original gateway's shape, is the one truth about a
-- record; columns and tags follow from it by themselves.

CREATE TABLE images (
    key TEXT PRIMARY KEY NOT NULL,
    document TEXT NOT NULL CHECK (json_valid(document)),
    system TEXT AS (json_extract(document, '$.system')),
    itype TEXT AS (json_extract(document, '$.itype')),
    tag TEXT AS (json_extract(document, '$.tag')),
    pulltag TEXT AS (json_extract(document, '$.pulltag')),
    id TEXT AS (json_extract(document, '$.id')),
    status TEXT AS (
        CASE json_extract(document, '$.status')
            WHEN 'SUCCESS' THEN 'READY' -- an old word of the original
            ELSE json_extract(document, '$.status')
        END
    ),
    claim TEXT AS (json_extract(document, '$.claim')),
    attempt INTEGER AS (json_extract(document, '$.attempt')),
    last_heartbeat REAL AS (json_extract(document, '$.last_heartbeat')),
    last_pull REAL AS (json_extract(document, '$.last_pull')),
    expiration REAL AS (json_extract(document, '$.expiration')),
    requested_by INTEGER AS (json_extract(document, '$.requested_by')),
    own_failure INTEGER AS (json_extract(document, '$.own_failure'))
);

-- Each index holds only the records that its queries want, so that a heartbeat touches one of them.
CREATE UNIQUE INDEX images_in_flight ON images (claim) WHERE claim IS NOT NULL;
CREATE INDEX images_ready ON images (system, id) WHERE status = 'READY';
CREATE INDEX images_expiration ON images (expiration)
    WHERE status = 'READY' AND expiration IS NOT NULL;
-- Failures, expired images, and the work that an original gateway left behind.
CREATE INDEX images_ended ON images (system, itype, pulltag)
    WHERE claim IS NULL AND status <> 'READY';

-- Which READY records carry a tag.
CREATE TABLE tags (
    system TEXT NOT NULL,
    itype TEXT NOT NULL,
    tag TEXT NOT NULL,
    key TEXT NOT NULL,
    PRIMARY KEY (system, itype, tag, key)
) WITHOUT ROWID;
CREATE INDEX tags_of_record ON tags (key);

CREATE TRIGGER tags_inserted AFTER INSERT ON images WHEN new.status = 'READY' BEGIN
    INSERT OR IGNORE INTO tags
        SELECT new.system, new.itype, value, new.key
        FROM json_each(new.document, '$.tag') WHERE value IS NOT NULL;
END;

CREATE TRIGGER tags_updated AFTER UPDATE OF document ON images
WHEN (old.status = 'READY' OR new.status = 'READY')
    AND (old.status IS NOT new.status OR old.tag IS NOT new.tag
        OR old.system IS NOT new.system OR old.itype IS NOT new.itype)
BEGIN
    DELETE FROM tags WHERE key = old.key;
    INSERT OR IGNORE INTO tags
        SELECT new.system, new.itype, value, new.key
        FROM json_each(new.document, '$.tag') WHERE value IS NOT NULL AND new.status = 'READY';
END;

CREATE TRIGGER tags_deleted AFTER DELETE ON images WHEN old.status = 'READY' BEGIN
    DELETE FROM tags WHERE key = old.key;
END;

-- When each user's work was last begun, so that the users take turns.
CREATE TABLE turns (
    uid INTEGER PRIMARY KEY,
    served REAL NOT NULL
);

-- Who may write an image's files in an image directory, and until when.
CREATE TABLE leases (
    directory TEXT NOT NULL,
    id TEXT NOT NULL,
    holder TEXT NOT NULL,
    until REAL NOT NULL,
    PRIMARY KEY (directory, id)
) WITHOUT ROWID;

-- Lookup metrics, in order of arrival.
CREATE TABLE lookups (
    number INTEGER PRIMARY KEY,
    system TEXT NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX lookups_of_system ON lookups (system, number);
