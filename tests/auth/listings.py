"""A listing of users and groups, as `getent` prints it."""

from __future__ import annotations

SYSTEM = b"""root:x:0:0:root:/root:/bin/bash
alice:x:2001:2100:Alice, of the lab:/home/alice:/bin/bash
DOM\\bob b (3):*:2002:2100::/home/bob:
root:x:0:0::/root:
alice:x:9999:9999::/:
toor:x:0:7::/root:
root:x:0:
users:x:2100:
lab:x:2300:alice,toor,nobody-knows
lab2:x:2301:DOM\\bob b (3),alice
lab2:x:2301:
"""
