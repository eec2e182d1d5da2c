"""The statements of the SQLite store.

`INDEXED BY` names an index where SQLite would otherwise read the whole table in the requested
order. Several systems or ids are one parameter: a JSON array. `claim IS NULL AND status <> 'READY'`
is the condition of the index of records that have ended.
"""

from __future__ import annotations

from shiftergw.store.fair_schedule import REMOVALS_UID
from shiftergw.store.ranges import MOST_FILES

GET = "SELECT key, document FROM images WHERE key = ?"

IN_FLIGHT = "SELECT key, document FROM images WHERE claim = ?"

FIND = """
    SELECT images.key, document FROM tags JOIN images USING (key)
    WHERE tags.system = ? AND tags.itype = ? AND tags.tag = ?
    ORDER BY last_pull DESC, images.key DESC LIMIT 1
"""

FIND_ID = """
    SELECT key, document FROM images
    WHERE system IN (SELECT value FROM json_each(?)) AND id = ? AND status = 'READY' ORDER BY key
"""

FIND_PREFIX = """
    SELECT key, document FROM images
    WHERE system IN (SELECT value FROM json_each(?)) AND id >= ? AND id < ? AND status = 'READY'
    ORDER BY id, key LIMIT ?
"""

FIND_EXPIRING = """
    SELECT key, document FROM images
    WHERE system IN (SELECT value FROM json_each(?)) AND id = ? AND status = 'EXPIRING'
"""

FIND_WORK = """
    SELECT key, document FROM (
        SELECT key, document, 1 AS alive, last_pull FROM images WHERE claim = ?
        UNION ALL
        SELECT key, document, 0, last_pull FROM images
        WHERE system = ? AND itype = ? AND pulltag = ?
        AND claim IS NULL AND status <> 'READY' AND status = 'FAILURE'
    ) ORDER BY alive DESC, last_pull DESC, key DESC
"""

LIST = """
    SELECT key, document FROM images WHERE system = ? AND status = 'READY' AND key > ?
    ORDER BY key LIMIT ?
"""

LARGE = 256 << 10
"""Bytes of a document from which on a page of a list omits the members that an image brings."""

# SQLite removes the members much faster than Python parses them, and does not block the reactor.
PAGE = f"""
    SELECT key, CASE WHEN length(document) < {LARGE} THEN document
        ELSE json_remove(document, '$.ENV', '$.ENTRY', '$.CMD', '$.LABELS') END
    FROM images WHERE system = ? AND status = 'READY' AND key > ? ORDER BY key LIMIT ?
"""  # noqa: S608 - a constant

REPORTS = """
    SELECT CASE json_type(document, '$.report') WHEN 'object'
        THEN json_extract(document, '$.report') END FROM images INDEXED BY images_listed
    WHERE system = ? AND status = 'READY' ORDER BY key DESC LIMIT ?
"""

QUEUE = """
    SELECT key, document FROM (
        SELECT key, document FROM images INDEXED BY images_in_flight
        WHERE claim IS NOT NULL AND system = ?1 AND key > ?2
        UNION ALL
        SELECT key, document FROM images INDEXED BY images_ended
        WHERE system = ?1 AND claim IS NULL AND status <> 'READY' AND status = 'FAILURE'
        AND key > ?2
    ) ORDER BY key LIMIT ?3
"""

COUNT_WORK = """
    SELECT ifnull(system, ''), ifnull(status, ''), count(*) FROM images INDEXED BY images_turns
    WHERE claim IS NOT NULL GROUP BY system, status
"""

# The input of fair_schedule(). The index has all of these columns, so no document is read.
# Older versions of this program do not remove `not_before` when they begin postponed work.
ALL_IN_FLIGHT = f"""
    WITH in_flight AS (
        SELECT key,
            ifnull(attempt, 0) = 0 OR not_before IS NOT NULL AND status = 'PENDING' AS waits,
            CASE status WHEN 'EXPIRING' THEN {REMOVALS_UID} ELSE ifnull(requested_by, 0) END AS uid,
            system, CASE status WHEN 'EXPIRING' THEN NULL ELSE location END AS registry
        FROM images INDEXED BY images_turns
        WHERE claim IS NOT NULL AND ifnull(not_before, 0) <= ?
    )
    SELECT key, waits, uid, system, registry, served
    FROM in_flight LEFT JOIN turns USING (uid) ORDER BY key
"""  # noqa: S608 - a constant

COUNT_WAITING = """
    SELECT count(*) FROM images
    WHERE claim IS NOT NULL AND status = 'PENDING' AND not_before IS NULL
"""

COUNT_WAITING_OF_USER = """
    SELECT count(*) FROM images
    WHERE claim IS NOT NULL AND status = 'PENDING' AND requested_by = ? AND not_before IS NULL
"""

# Postponed pulls of one registry, or of one system: the number of all, and of one user's.
COUNT_POSTPONED = """
    SELECT count(*), ifnull(sum(requested_by IS ?), 0) FROM images INDEXED BY images_turns
    WHERE claim IS NOT NULL AND status = 'PENDING' AND not_before > 0 AND location IS ?
"""

COUNT_POSTPONED_FOR_SYSTEM = """
    SELECT count(*), ifnull(sum(requested_by IS ?), 0) FROM images INDEXED BY images_turns
    WHERE claim IS NOT NULL AND status = 'PENDING' AND not_before > 0 AND system IS ?
"""

STALE = """
    SELECT key, document FROM images INDEXED BY images_turns
    WHERE claim IS NOT NULL AND attempt > 0 AND (not_before IS NULL OR status <> 'PENDING')
    AND ifnull(last_heartbeat, 0) < ?
    ORDER BY last_heartbeat, key
"""

LIST_EXPIRED = """
    SELECT key, document FROM images
    WHERE status = 'READY' AND expiration IS NOT NULL AND expiration <= ?
    AND json_extract(document, '$.pinned_by') IS NULL
    AND (? IS NULL OR system IN (SELECT value FROM json_each(?))) ORDER BY expiration, key LIMIT ?
"""

# The images that a user has pinned. Few documents have the member, and to search for its name is
# much faster than to parse them.
COUNT_PINS = """
    SELECT count(*) FROM images INDEXED BY images_listed
    WHERE system = ? AND status = 'READY' AND instr(document, '"pinned_by"') > 0
    AND json_extract(document, '$.pinned_by') = ?
"""

# Earlier FAILUREs of a tag that the requester could see, and work that an original gateway has
# begun and will never end.
FORGET_EARLIER = """
    DELETE FROM images
    WHERE system = ? AND itype = ? AND pulltag = ? AND claim IS NULL AND status <> 'READY'
    AND status NOT IN ('EXPIRING', 'EXPIRED')
    AND (status <> 'FAILURE' OR own_failure IS NOT 1 OR requested_by IS ?)
"""

FORGET_ENDED = """
    DELETE FROM images
    WHERE claim IS NULL AND status <> 'READY' AND status IN ('FAILURE', 'EXPIRED')
    AND ifnull(last_pull, 0) < ? AND (? OR attempt > 0)
"""

READY_OF_ID = """
    SELECT key, document FROM images WHERE system = ? AND id = ? AND status = 'READY' AND itype = ?
    ORDER BY last_pull DESC, key DESC LIMIT 1
"""

EXPIRING_OF_ID = """
    SELECT key, document FROM images
    WHERE system = ? AND id = ? AND status = 'EXPIRING' AND itype = ?
    ORDER BY last_pull DESC, key DESC LIMIT 1
"""

CARRIERS = """
    SELECT images.key, document FROM tags JOIN images USING (key)
    WHERE tags.system = ? AND tags.itype = ? AND tags.tag = ? AND tags.key <> ?
"""

ABANDON = """
    DELETE FROM images
    WHERE key = ? AND claim IS NOT NULL AND status = 'PENDING' AND ifnull(attempt, 0) = 0
"""

REMOVE = "DELETE FROM images WHERE key = ?"

NOTE_TURN = "INSERT OR REPLACE INTO turns (uid, served) VALUES (?, ?)"

BLOCK = "INSERT OR IGNORE INTO blocks (directory, id, uid, since) VALUES (?, ?, ?, ?)"

ALLOW = "DELETE FROM blocks WHERE directory = ? AND id = ?"

FIND_BLOCKS = """
    SELECT id FROM blocks WHERE directory = ? AND id >= ? AND id < ? ORDER BY id LIMIT ?
"""

FIND_BLOCK = """
    SELECT 1 FROM blocks WHERE directory = ? AND id IN (SELECT value FROM json_each(?)) LIMIT 1
"""

FORGET_LEASES = "DELETE FROM leases WHERE until <= ?"

HOLDER = "SELECT holder FROM leases WHERE directory = ? AND id = ?"

LEASE = "INSERT OR REPLACE INTO leases (directory, id, holder, until) VALUES (?, ?, ?, ?)"

RELEASE = "DELETE FROM leases WHERE directory = ? AND id = ? AND holder = ?"

BREAKER = "SELECT until, why, trips, probed FROM breakers WHERE key = ?"

OPEN_BREAKERS = """
    SELECT key, until, why, trips, probed FROM breakers WHERE until > ? ORDER BY key LIMIT ?
"""

PROBE_BREAKER = "UPDATE breakers SET probed = ? WHERE key = ?"

END_PROBE = "UPDATE breakers SET probed = min(probed, ?) WHERE key = ? AND probed = ?"

TRIP_BREAKER = """
    INSERT OR REPLACE INTO breakers (key, until, why, trips, probed)
    VALUES (:key, :until, :why, :trips, :probed)
"""

CLOSE_BREAKER = "DELETE FROM breakers WHERE key = ? AND until <= ?"

FORGET_BREAKERS = "DELETE FROM breakers WHERE until <= ?"

ADD_THROUGHPUT = """
    INSERT INTO throughput (since, pulls, failures, image_bytes, layer_bytes)
    VALUES (?, ?, ?, ?, ?) ON CONFLICT (since) DO UPDATE SET
        pulls = pulls + excluded.pulls,
        failures = failures + excluded.failures,
        image_bytes = image_bytes + excluded.image_bytes,
        layer_bytes = layer_bytes + excluded.layer_bytes
"""

THROUGHPUT = """
    SELECT since, pulls, failures, image_bytes, layer_bytes FROM throughput
    WHERE since >= ? ORDER BY since
"""

FORGET_THROUGHPUT = "DELETE FROM throughput WHERE since < ?"

ADD_LOOKUP = "INSERT INTO lookups (system, document) VALUES (?, ?)"

# The rows are in the order of arrival, so both statements read only the rows that they remove.
KEEP_LOOKUPS = "DELETE FROM lookups WHERE number <= (SELECT max(number) FROM lookups) - ?"

FORGET_LOOKUPS = """
    DELETE FROM lookups WHERE number < (
        SELECT number FROM lookups
        WHERE ifnull(json_extract(document, '$.time'), ?1) >= ?1 ORDER BY number LIMIT 1
    )
"""

LOOKUPS = """
    SELECT document FROM lookups WHERE system = ? ORDER BY number DESC LIMIT ?
"""

REMOVE_RANGES = "DELETE FROM file_ranges WHERE sha256 = ?"

ADD_RANGES = "INSERT INTO file_ranges (sha256, saved_at, content) VALUES (?, ?, ?)"

ADD_DATA = "INSERT INTO file_data (data, sha256, size) VALUES (?, ?, ?)"

RANGES = "SELECT content FROM file_ranges WHERE sha256 = ?"

# The wanted data is a JSON object: digest of the data, and bytes of it that are needed.
FIND_BASES = f"""
    WITH common AS (
        SELECT sha256, sum(min(file_data.size, wanted.value)) AS common_size
        FROM json_each(?) AS wanted JOIN file_data ON data = wanted.key GROUP BY sha256
        ORDER BY common_size DESC LIMIT {MOST_FILES}
    )
    SELECT id, sha256, json_extract(document, '$.size'), json_extract(document, '$.modified')
    FROM common JOIN images USING (sha256)
    WHERE status = 'READY' AND system IN (SELECT value FROM json_each(?)) AND id <> ?
    ORDER BY common_size DESC, last_pull DESC, id
"""  # noqa: S608 - a constant

FORGET_RANGES = """
    DELETE FROM file_ranges WHERE saved_at < ? AND NOT EXISTS (
        SELECT 1 FROM images
        WHERE images.sha256 = file_ranges.sha256 AND status IN ('READY', 'EXPIRING')
    )
"""
