-- What the sixth version of the store adds: what was done in each period of the last days.

CREATE TABLE throughput (
    since INTEGER PRIMARY KEY NOT NULL,
    pulls INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    image_bytes INTEGER NOT NULL,
    layer_bytes INTEGER NOT NULL
);
