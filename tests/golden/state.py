"""Record and restore a state: a gateway's SQLite file as SQL, and the files of its directories.

A recorded state is a directory below `states/`, named after the version that made it:

* `state.sql` creates the SQLite file;
* `files.json` has the other files: path, mode, time of the last write, and content in base64.

`@ROOT@` stands for the directory of the gateway, and `@MACHINE@` for the host name. When a state is
restored, its times are moved forward, so that recent times are recent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

STATES = Path(__file__).with_name("states")

DATABASE = "state/shiftergw.sqlite"
"""The path of the SQLite file, below the directory of the gateway."""

TREES = ("state", "cache", "expand", "images")
"""The gateway's directories there: `StateDirectory` and its like."""

TIMES = frozenset({"last_pull", "last_heartbeat", "expiration", "not_before", "modified", "time"})
"""Members of documents that are times."""

_COLUMNS = {
    "turns": ("served",),
    "leases": ("until",),
    "blocks": ("since",),
    "breakers": ("until", "probed"),
    "file_ranges": ("saved_at",),
}
"""Columns of other tables that are times."""


def record(root: Path, target: Path, now: float) -> None:
    """Write the state below `root` into the directory `target`; `now` is its present time."""
    target.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(root / DATABASE)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        lines = [*db.iterdump(), f"PRAGMA user_version = {version};"]
    text = "\n".join(lines).replace(str(root), "@ROOT@")
    text = re.sub(rf"(?<![\w+/]){re.escape(socket.gethostname())}(?![\w+/=])", "@MACHINE@", text)
    (target / "state.sql").write_text(f"{text}\n", encoding="utf-8")
    files, contents = {}, {}
    for path in sorted(path for tree in TREES for path in (root / tree).rglob("*")):
        if not path.is_file() or path.name.startswith(Path(DATABASE).name):
            continue
        content, status = path.read_bytes(), path.stat()
        digest = hashlib.sha256(content).hexdigest()[:16]
        contents[digest] = base64.b64encode(content).decode()
        files[str(path.relative_to(root))] = {
            "mode": f"{status.st_mode & 0o777:o}",
            "modified": status.st_mtime_ns,
            "content": digest,
        }
    document = {"now": now, "files": files, "contents": contents}
    (target / "files.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def restore(version: str, root: Path, now: float | None = None) -> float:
    """Restore the state of a version below `root`, and return its present time.

    With `now` that time is moved to `now`, by whole seconds, and all other times with it.
    """
    source = STATES / version
    document = json.loads((source / "files.json").read_text(encoding="utf-8"))
    present: float = document["now"]
    shift = 0 if now is None else int(now - present)
    for tree in TREES:
        (root / tree).mkdir(mode=0o700, exist_ok=True)
    for name, file in document["files"].items():
        path = root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(document["contents"][file["content"]]))
        path.chmod(int(file["mode"], 8))
        mtime = file["modified"] + shift * 10**9
        os.utime(path, ns=(mtime, mtime))
    text = (source / "state.sql").read_text(encoding="utf-8")
    text = text.replace("@ROOT@", str(root)).replace("@MACHINE@", socket.gethostname())
    with closing(sqlite3.connect(root / DATABASE)) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {text}")
        _move(db, shift)
        db.commit()
    (root / DATABASE).chmod(0o600)
    return present + shift


def _move(db: sqlite3.Connection, seconds: int) -> None:
    """Add `seconds` to every time in the database."""
    for table, key in (("images", "key"), ("lookups", "number")):
        for row in db.execute(f"SELECT {key}, document FROM {table}").fetchall():
            document: dict[str, Any] = json.loads(row[1])
            times = {name: document[name] + seconds for name in TIMES & document.keys()}
            text = json.dumps(document | times, separators=(",", ":"))
            db.execute(f"UPDATE {table} SET document = ? WHERE {key} = ?", (text, row[0]))
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    for table, columns in _COLUMNS.items():
        for column in columns if table in tables else ():
            db.execute(f"UPDATE {table} SET {column} = {column} + ? WHERE {column} > 0", (seconds,))
