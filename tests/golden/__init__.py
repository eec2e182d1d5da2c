"""Golden tests: what users, sites and other versions depend on stays the same.

Clients, sites and other versions of this program depend on names: members of JSON, exit codes, keys
of the configuration, documents in databases, files on disks, messages to worker machines. These
tests compare what the present program does with recorded data, of which there are two kinds:

* `data/*.json` is what the present program does. `python -m tests.golden` writes it again;
  arguments go to pytest (`python -m tests.golden tests/golden/test_http.py`). Do this only for a
  deliberate change, read the difference, and commit it with the change. If a name changes, the old
  name must still work, and a test must show that.
* `states/VERSION` is what a version has left on a site's disks, with work in flight, and what its
  worker machines and gateways send to each other. It is never written again. Before a release
  `python -m tests.golden.make_state VERSION` records the state of the new version beside it, and
  the tests run on each.

| test | what is recorded |
|---|---|
| `test_http` | answers of each route for a record in each state, refusals, error codes, headers |
| `test_messages` | status messages |
| `test_configuration` | keys, defaults, old forms, variables of the environment |
| `test_commands` | entry points, options, exit codes, units, scripts |
| `test_store` | SQLite's schema, MongoDB's collections and indexes, documents after each step |
| `test_files` | names on remote systems, in homes, sealed logins, the secret key |
| `test_celery` | messages between gateways and worker machines, in both directions |
| `test_upgrade` | a gateway on a recorded state: documents, answers, names of files, log lines |

Only `program` and `options` import `shiftergw`. A change that renames a part of the program edits
these modules and no data. Values that differ in each run are masked, as `<time: float>`, so that
their type is recorded.
"""
