-- What the third version of the store adds: no system has all the workers, and lists come in pages.

-- Work by its state and user, as before, and for which system.
DROP INDEX images_turns;
CREATE INDEX images_turns ON images (status, requested_by, attempt, system, key)
    WHERE claim IS NOT NULL;

-- The images of a system, in the order in which they are listed.
CREATE INDEX images_listed ON images (system, key) WHERE status = 'READY';
