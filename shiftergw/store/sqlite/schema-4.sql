-- What the fourth version of the store adds: postponed work, breakers, shares of registries.

ALTER TABLE images ADD COLUMN not_before REAL AS (json_extract(document, '$.not_before'));
ALTER TABLE images ADD COLUMN location TEXT AS (json_extract(document, '$.location'));

-- Work by its state and user, as before, and what of it is postponed, for which registry.
DROP INDEX images_turns;
CREATE INDEX images_turns
    ON images (status, requested_by, not_before, attempt, system, location, key)
    WHERE claim IS NOT NULL;

-- Requests that are held back: until when, why, how often they failed in a row, and until when one
-- caller probes.
CREATE TABLE breakers (
    key TEXT PRIMARY KEY NOT NULL,
    until REAL NOT NULL,
    why TEXT NOT NULL,
    trips INTEGER NOT NULL,
    probed REAL NOT NULL
) WITHOUT ROWID;
