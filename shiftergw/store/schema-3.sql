-- What the third version of the store adds: no system has all the workers.

-- Work by its state and user, as before, and for which system.
DROP INDEX images_turns;
CREATE INDEX images_turns ON images (status, requested_by, attempt, system, key)
    WHERE claim IS NOT NULL;
