"""A survey assigns each record of an original's database to one category, and counts oddities."""

from __future__ import annotations

from typing import Any

import pytest

from shiftergw.store import survey as survey_module
from shiftergw.store.survey import Category, Oddity, Survey
from tests.matrices import LONG
from tests.store.original import (
    DISORDERS,
    IN_ORDER,
    KEYLESS,
    NOW,
    ROUND,
    SAME_ID,
    SAME_TAG,
    SYSTEMS,
    Disorder,
    document,
    records,
)

COUNT = 10_000 if LONG else 1_000


def survey_of(*documents: dict[str, Any]) -> Survey:
    """Return a survey of documents."""
    survey = Survey(SYSTEMS, NOW)
    for content in documents:
        survey.add(content)
    return survey


def test_the_sample_has_enough_kinds_of_disorder() -> None:
    """There are more than 50 kinds with different names, in a cycle of a hundred records."""
    assert len({kind.name for kind in DISORDERS}) == len(DISORDERS) > 50
    assert len(ROUND) == 100
    assert {category for kind in ROUND for category in [kind.category]} == {*Category} - {
        Category.IN_FLIGHT
    }
    assert {oddity for kind in ROUND for oddity in kind.odd} == {*Oddity} - {Oddity.CLAIM}


@pytest.mark.parametrize("kind", DISORDERS, ids=lambda kind: kind.name)
def test_each_kind_is_recognized(kind: Disorder) -> None:
    """A record of each kind is in its category, and has its oddities."""
    survey = survey_of(document(7, kind))
    assert {category: tally.count for category, tally in survey.categories.items()} == {
        kind.category: 1
    }
    assert survey.oddities.keys() == kind.odd


def test_each_record_is_in_one_category() -> None:
    """The categories have all records, each kind in its own category."""
    survey, expected, odd = (
        Survey(SYSTEMS, NOW),
        dict.fromkeys(Category, 0),
        dict.fromkeys(Oddity, 0),
    )
    for kind, content in records(COUNT):
        assert survey.add(content, has_object_id=kind is not KEYLESS) is kind.category, kind.name
        expected[kind.category] += 1
        for oddity in kind.odd:
            odd[oddity] += 1
    del odd[Oddity.CLAIM]  # nobody but this program writes one
    assert survey.records == survey.foreign_records == COUNT == sum(expected.values())
    counts = {category: tally.count for category, tally in survey.categories.items()}
    assert counts == {category: count for category, count in expected.items() if count}
    assert {oddity: tally.count for oddity, tally in survey.oddities.items()} == odd
    assert sum(survey.states.values()) == COUNT
    assert survey.unknown_members == {"site_note": COUNT // 100, "blob": COUNT // 100}
    assert all(
        len(tally.examples) <= 3
        for tally in [*survey.categories.values(), *survey.oddities.values()]
    )


def test_duplicates_are_counted_once() -> None:
    """An image or a tag in several records of one type counts once; two types do not count."""
    first = document(7, SAME_ID)
    for itype in ("docker", "docker", "custom"):
        first_odd = survey_of(first, first | {"itype": itype}, first).oddities
        assert (Oddity.SEVERAL_IDS in first_odd) is True
    survey = survey_of(*[document(7, SAME_TAG)] * 3)
    assert survey.oddities[Oddity.SEVERAL_TAGS].count == 1
    two = survey_of(first, first | {"itype": "custom"})
    assert {Oddity.SEVERAL_IDS, Oddity.SEVERAL_TAGS}.isdisjoint(two.oddities)


def test_records_of_this_program_are_recognized() -> None:
    """Records of this program are not foreign, and their work is in flight."""
    own = document(7, KEYLESS) | {"attempt": 1, "moved": ["x:1"], "finishing": {"since": 5.0}}
    survey = survey_of(own, own | {"status": "PENDING", "claim": "alpha/docker/x:1"})
    assert (survey.records, survey.foreign_records, survey.unknown_members) == (2, 0, {})
    assert survey.categories[Category.IN_FLIGHT].count == 1


@pytest.mark.parametrize("claim", [None, "alpha/docker/x:1", ["odd"]])
def test_duplicate_claims_are_counted(claim: Any) -> None:
    """Duplicate claims, which prevent the unique index, are counted, those of null as well."""
    content = document(7, IN_ORDER) | {"claim": claim}
    assert Oddity.CLAIM not in survey_of(content, document(8, IN_ORDER)).oddities
    assert survey_of(content, content).oddities[Oddity.CLAIM].count == 1


def test_many_names_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems and members beyond the limit are counted together, and names are printable."""
    monkeypatch.setattr(survey_module, "NAMES", 5)
    odd = [{"system": f"s{n}\n", "status": "READY", f"m{n}\x1b": 1} for n in range(50)]
    survey = survey_of(*odd)
    assert (len(survey.unknown_members), survey.unknown_members["others"]) == (6, 45)
    assert (len(survey.states), survey.states["others", "others"]) == (6, 45)
    assert all(name.isprintable() for name in survey.unknown_members)
    assert all(
        content.isprintable() for content in survey.categories[Category.FOREIGN_SYSTEM].examples
    )
