-- What the second version of the store adds: removals as work, blocks, limits of the queue.

-- Work by its state and user: whose turn it is, how many pulls wait. Whoever asks reads no document.
CREATE INDEX images_turns ON images (status, requested_by, attempt, key) WHERE claim IS NOT NULL;

-- Images whose files are to go: a pull of the same image takes them back.
CREATE INDEX images_expiring ON images (system, id) WHERE status = 'EXPIRING';

-- Image ids that an admin keeps out of an image directory: by whose order, and since when.
CREATE TABLE blocks (
    directory TEXT NOT NULL,
    id TEXT NOT NULL,
    uid INTEGER NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (directory, id)
) WITHOUT ROWID;
