"""The metadata of a record: who may run an image is who may read its record, and nobody else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shiftergw.access import of
from shiftergw.model import ImageRecord, Session, document_of
from shiftergw.oci.manifest import parse_config
from shiftergw.oci.meta import Meta, read_meta
from shiftergw.targets import meta_of

# What breaks lines, lists and numbers, and what would be an ACL if it came to stand on a line.
TEXT = st.text(
    st.sampled_from("\n\r\0\\'\"[]u,:#= \t\v\fA1/ü\x85\xa0\ud800") | st.characters(), max_size=8
)
LINES = st.sampled_from(["USERACL: 7", "GROUPACL: 7", "USERACL:", "FORMAT: VFS", "\\", ""])
VALUE = st.builds("{}{}{}".format, TEXT, st.sampled_from(["", "\n", "\r\n", "\\\n"]), LINES) | TEXT
IDS = st.none() | st.lists(st.sampled_from([0, 5, 7, 2300, 2**32 - 2]), max_size=4).map(tuple)
SESSIONS = st.builds(
    Session,
    st.just("mycluster"),
    st.just("alice"),
    st.sampled_from([0, 5, 7, 8]),
    st.just("users"),
    st.just(100),
    st.frozensets(st.sampled_from([0, 5, 7, 100, 2300])),
)

Config = dict[str, Any]
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "Env": st.lists(VALUE | st.builds("A={}".format, VALUE), max_size=4),
        "Entrypoint": VALUE | st.lists(VALUE, max_size=3),
        "Cmd": VALUE | st.lists(VALUE, max_size=3),
        "WorkingDir": VALUE,
    },
)


def _record(config: Config, **acl: Any) -> ImageRecord:
    """Return what the store holds of an image with this configuration, as the registry sent it."""
    image = parse_config(json.dumps({"config": config}).encode())
    found = {"env": image.env, "entry": image.entrypoint, "cmd": image.cmd}
    document = document_of({**found, "workdir": image.workdir, **acl})
    return ImageRecord.from_document(json.loads(json.dumps(document)))


def _lets_in(meta: Meta, session: Session) -> bool:
    """Say whether the runtime starts an image for a user: without both lists it does for all."""
    if not meta.user_acl and not meta.group_acl:
        return True
    return session.uid in (meta.user_acl or ()) or not session.groups.isdisjoint(
        meta.group_acl or ()
    )


@given(CONFIGS, st.sampled_from([None, False, True]), IDS, IDS, SESSIONS)
def test_record_and_metadata_let_the_same_users_in(
    config: Config,
    private: bool | None,
    users: tuple[int, ...] | None,
    groups: tuple[int, ...] | None,
    session: Session,
) -> None:
    """Whatever the image's own values are, and whatever form of ACL its record has."""
    record = _record(config, private=private, user_acl=users, group_acl=groups)
    meta = read_meta(meta_of(record).content)
    assert _lets_in(meta, session) is record.may_be_read_by(session)
    restricted = of(record).restricted
    assert meta.user_acl == ((users or ()) if restricted else None)
    assert meta.group_acl == ((groups or ()) if restricted else None)


@given(CONFIGS, IDS)
def test_an_image_s_values_are_read_as_they_were_meant(
    config: Config, users: tuple[int, ...] | None
) -> None:
    """As they stood, or not at all and then named; the format is always ours."""
    record = _record(config, private=True, user_acl=users)
    file = meta_of(record)
    meta = read_meta(file.content)
    assert (meta.format, meta.warnings) == ("squashfs", [])
    for name, meant, read in (
        ("ENTRY", record.entry, meta.entry),
        ("CMD", record.cmd, meta.cmd),
        ("WORKDIR", record.workdir, meta.workdir),
    ):
        assert read == (None if name in file.dropped else meant or None)
    whole = [one for one in record.env or () if one in meta.env]
    left_out = [name for name in file.dropped if name.startswith("ENV ")]
    assert len(whole) + len(left_out) >= len(record.env or ())
    assert {one.rstrip(" \t\v\f\r\n") for one in record.env or ()} >= set(meta.env)
