"""The order of waiting work, as a pure function."""

from __future__ import annotations

import random
import time

from shiftergw.store.fair_schedule import InFlight, fair_order, fair_schedule


def work_in_flight(seed: int, count: int, users: int) -> list[InFlight]:
    """Return random work in the order of arrival."""
    chance = random.Random(seed)
    last_turns = {uid: chance.choice([None, chance.random()]) for uid in range(users)}
    return [
        InFlight(
            f"{number:06}",
            chance.random() < 0.8,
            uid := chance.randrange(users),
            chance.choice(["alpha", "beta"]),
            chance.choice([None, "hub", "quay"]),
            last_turns[uid],
        )
        for number in range(count)
    ]


def test_places_are_in_the_order_of_the_schedule() -> None:
    """Without limits the order of all is the one in which work is offered."""
    for seed in range(50):
        work = work_in_flight(seed, 40, 1 + seed % 7)
        assert fair_order(work) == fair_schedule(work, 99, None, ()), seed
    assert fair_order([]) == []


def test_the_order_of_a_full_queue_is_quick() -> None:
    """10,000 waiting pulls of 500 users take a tenth of a second of processor time at most."""
    work = work_in_flight(1, 12_500, 500)
    start = time.process_time()
    assert len(fair_order(work)) > 9_000
    assert time.process_time() - start < 2  # a hundred times as long as fair_order takes
