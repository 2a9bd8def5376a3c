"""homeserver/storage/room_state.py: any historic state is what it was, read in few steps and stored in few rows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects import sqlite

from homeserver.protocol.events import StateKey
from homeserver.storage import room_state, streams, sync_streams
from homeserver.storage.database import Database
from homeserver.storage.room_state import LEVEL_WIDTH, NewGroup, step_of
from homeserver.storage.tables import events, state_group_entries

EVENTS = 40
"""Events that the states of these tests are made of; their numeric IDs are 1 to this."""
KEYS: list[StateKey] = [("m.room.name", ""), ("m.room.name", "\0"), ("a\0\ufdd0", "b"), ("m.room.member", "@a:b")]
KEYS += [("t", str(number)) for number in range(8)]

Model = dict[StateKey, str]


@pytest.fixture(scope="module")
def prepared(shared_database: Database) -> Database:
    with shared_database.begin() as connection:
        rows = [
            {"event_nid": nid, "event_id": f"${nid}", "room_nid": 1, "type": "t", "depth": 1}
            | {"origin_server_ts": 0, "json": b"{}"}
            for nid in range(1, EVENTS + 1)
        ]
        connection.execute(insert(events), rows)
        room_state.intern_state_keys(connection, KEYS)
    return shared_database


class Lineages:
    """State groups in the database, beside a model of what each holds."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.keys = room_state.state_key_nids(connection, KEYS)
        self.models: dict[int, Model] = {}
        self.depths: dict[int, int] = {}
        self.changes = 0

    def store(self, new: Sequence[tuple[int | None, dict[StateKey, int | None]]]) -> list[int]:
        """Store groups at once: predecessor (which may be one of them) and delta of each."""
        numbers = streams.take(self.connection, "state_group", len(new))
        groups: list[NewGroup] = []
        for number, (predecessor, delta) in zip(numbers, new, strict=True):
            model = dict(self.models[predecessor]) if predecessor is not None else {}
            for key, nid in delta.items():
                if nid is None:
                    model.pop(key, None)
                else:
                    model[key] = f"${nid}"
            self.models[number] = model
            self.depths[number] = 0 if predecessor is None else self.depths[predecessor] + 1
            self.changes += len(delta)
            groups.append(NewGroup(number, 1, predecessor, {self.keys[key]: nid for key, nid in delta.items()}))
        room_state.store_groups(self.connection, groups)
        return list(numbers)

    def steps(self, group: int) -> int:
        """How many groups a read of this one goes through."""
        return len(self.connection.execute(room_state._WALK, {"state_group": group}).all())


def entries_of(connection: Connection, groups: Sequence[int]) -> int:
    """How many rows these groups take."""
    statement = select(func.count()).where(state_group_entries.c.state_group.between(min(groups), max(groups)))
    return connection.scalar(statement) or 0


DELTAS = st.dictionaries(st.sampled_from(KEYS), st.one_of(st.none(), st.integers(1, EVENTS)), max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 60), DELTAS), min_size=1, max_size=40), max_size=5))
def test_every_historic_state_is_what_it_was(
    prepared: Database, batches: list[list[tuple[int, dict[StateKey, int | None]]]]
) -> None:
    with prepared.begin() as connection:
        lineages = Lineages(connection)
        known: list[int | None] = [None]
        for batch in batches:
            # Groups of one call build on each other as well as on older ones.
            first = streams.take(connection, "state_group", 1)[0] + 1
            new: list[tuple[int | None, dict[StateKey, int | None]]] = []
            for index, (back, delta) in enumerate(batch):
                new.append((known[-1 - back % len(known)], delta))
                known.append(first + index)
            lineages.store(new)
        for group, model in lineages.models.items():
            assert room_state.read_group(connection, group) == model
            assert room_state.read_group_keys(connection, group, KEYS[:5]) == {
                key: event_id for key, event_id in model.items() if key in KEYS[:5]
            }
        # Several at once, and as a change of others that are at hand already.
        several = room_state.read_keys_of_groups(connection, list(lineages.models), KEYS[:5])
        assert several == {
            group: {key: event_id for key, event_id in model.items() if key in KEYS[:5]}
            for group, model in lineages.models.items()
        }
        at_hand = frozenset(list(lineages.models)[::3])
        for group, model in lineages.models.items():
            base, changes = room_state.read_group_since(connection, group, at_hand)
            changed = {**lineages.models[base], **changes} if base is not None else changes
            assert {key: event_id for key, event_id in changed.items() if event_id is not None} == model
            assert base in at_hand or base is None
            assert base == group or group not in at_hand


@pytest.mark.parametrize("batch", [7, 50])
def test_long_lineages_are_read_in_few_steps_and_stored_in_few_rows(prepared: Database, batch: int) -> None:
    length, seed = 1_060, 7
    chosen = random.Random(seed)
    with prepared.begin() as connection:
        lineages = Lineages(connection)
        numbers = lineages.store([(None, dict.fromkeys(KEYS, 1))])
        while len(numbers) < length:
            first = streams.take(connection, "state_group", 1)[0] + 1  # the numbers that the next call takes
            new: list[tuple[int | None, dict[StateKey, int | None]]] = []
            for index in range(batch):
                delta: dict[StateKey, int | None] = {chosen.choice(KEYS): chosen.choice([None, *range(1, EVENTS)])}
                new.append((numbers[-1] if index == 0 else first + index - 1, delta))
            numbers += lineages.store(new)
        levels = 1 + math.floor(math.log(length, LEVEL_WIDTH))
        some = [*numbers[:: LEVEL_WIDTH - 1], *numbers[-LEVEL_WIDTH * 2 :]]
        assert max(map(lineages.steps, some)) <= (LEVEL_WIDTH - 1) * (levels + 1) + 1
        assert all(
            lineages.steps(group) <= 2 * (LEVEL_WIDTH - 1) + 2
            for group in some
            if lineages.depths[group] < LEVEL_WIDTH**2
        )
        rows = entries_of(connection, numbers)
        assert rows <= levels * lineages.changes
        for group in chosen.sample(numbers, 60):
            assert room_state.read_group(connection, group) == lineages.models[group]


def test_the_parent_is_a_power_of_the_width_away() -> None:
    assert [step_of(ordinal) for ordinal in (1, 31, 32, 33, 64, 1023, 1024, 2048, 1056, 32**3)] == [
        1, 1, 32, 1, 32, 1, 1024, 1024, 32, 32**3,
    ]  # fmt: skip


def test_branches_share_what_they_have_in_common(prepared: Database) -> None:
    with prepared.begin() as connection:
        lineages = Lineages(connection)
        (root,) = lineages.store([(None, dict.fromkeys(KEYS, 1))])
        for number in range(2, 30):
            lineages.store([(root, {KEYS[0]: number})])
        assert entries_of(connection, list(lineages.models)) == len(KEYS) + 28
        for group, model in lineages.models.items():
            assert room_state.read_group(connection, group) == model


def test_unknown_keys_are_not_in_a_state(prepared: Database) -> None:
    with prepared.begin() as connection:
        lineages = Lineages(connection)
        (group,) = lineages.store([(None, {KEYS[0]: 3})])
        assert room_state.read_group_keys(connection, group, [("unheard", "of"), KEYS[0]]) == {KEYS[0]: "$3"}
        assert room_state.read_group_keys(connection, group, [("unheard", "of")]) == {}


def test_state_keys_keep_their_numbers(shared_database: Database) -> None:
    with shared_database.begin() as connection:
        first = room_state.intern_state_keys(connection, KEYS[:6])
        again = room_state.intern_state_keys(connection, KEYS)
    assert len(set(again.values())) == len(KEYS)
    assert first.items() <= again.items()
    assert shared_database.read_now(room_state.state_key_nids, [*KEYS, ("no", "such")]) == again


def test_an_earlier_membership_is_found_without_reading_those_of_others(shared_database: Database) -> None:
    if not shared_database.is_sqlite:
        pytest.skip("PostgreSQL plans by the size of tables, and this one is empty")
    statement = str(sync_streams._MEMBER_AT.compile(dialect=sqlite.dialect())).replace("?", "1")
    plan = shared_database.read_now(lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}").all())
    assert any("current_state_changes_by_key" in row[3] for row in plan), plan
