"""homeserver/storage/auth_chains.py: the index answers what a walk over the auth graph does."""

from __future__ import annotations

import itertools
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from homeserver.protocol.events import Event
from homeserver.protocol.room_versions import ROOM_VERSIONS
from homeserver.protocol.state_resolution import auth_difference_of, conflicted_subgraph_of
from homeserver.storage import auth_chains, streams
from homeserver.storage.database import Database
from tests.protocol.symbolic import ALICE, event

V12 = ROOM_VERSIONS["12"]
Graph = list[list[int]]
"""The auth events of each event, by index; all are older."""


def chain_of(graph: Graph, start: set[int]) -> set[int]:
    """The events themselves and all that they lead to."""
    found, todo = set(start), list(start)
    while todo:
        for cited in graph[todo.pop()]:
            if cited not in found:
                found.add(cited)
                todo.append(cited)
    return found


def store(connection: Connection, graph: Graph, cuts: set[int]) -> dict[int, int]:
    """Store the graph, in several batches; returns the numeric ID of each event."""
    nids = dict(enumerate(streams.take(connection, "event", len(graph))))
    chains = itertools.count(streams.take(connection, "auth_chain", len(graph))[0])
    batch: list[tuple[int, list[int]]] = []
    for index, cited in enumerate(graph):
        batch.append((nids[index], [nids[auth] for auth in cited]))
        if index in cuts or index == len(graph) - 1:
            auth_chains.assign_positions(connection, batch, chains)
            batch = []
    return nids


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 24))
    graph: Graph = [[]]
    for index in range(1, size):
        near = st.integers(max(0, index - 6), index - 1)
        graph.append(sorted(draw(st.sets(st.one_of(near, st.integers(0, index - 1)), max_size=4))))
    return graph


def as_events(graph: Graph) -> dict[str, Event]:
    return {
        f"${i}": event(V12, "t", ALICE, {}, state_key=str(i), event_id=f"${i}", auth=[f"${auth}" for auth in cited])
        for i, cited in enumerate(graph)
    }


def check(database: Database, graph: Graph, cuts: set[int], choose: random.Random) -> None:
    size = len(graph)
    with database.begin() as connection:
        nids = store(connection, graph, cuts)
        names = {nid: index for index, nid in nids.items()}
        events = as_events(graph)
        for _ in range(4):
            chosen = set(choose.sample(range(size), choose.randint(1, size)))
            found = auth_chains.auth_chain_nids(connection, [nids[i] for i in chosen])
            assert {names[nid] for nid in found} == chain_of(graph, chosen)

            # States that share some of their events: the others are in conflict.
            keys = sorted(chosen)
            states = [
                {("t", str(key % 7)): f"${key}" for key in keys if choose.random() < 0.7 or key < size // 3}
                for _ in range(choose.randint(2, 3))
            ]
            shared = set.intersection(*(set(state.values()) for state in states))
            sets = [frozenset(nids[int(i[1:])] for i in state.values()) for state in states]
            difference = {f"${names[nid]}" for nid in auth_chains.auth_difference(connection, sets)}
            conflicted = set().union(*(state.values() for state in states)) - shared
            chains = [chain_of(graph, {int(event_id[1:]) for event_id in state.values()}) for state in states]
            assert difference == {f"${i}" for i in set().union(*chains) - chains[0].intersection(*chains)}
            # An event counts as part of its own chain here, as it does for other servers. To the letter it does not;
            # the full conflicted sets differ by no more than events that all the states hold.
            to_the_letter = auth_difference_of(states, events) | conflicted
            assert difference | conflicted <= to_the_letter
            assert to_the_letter - (difference | conflicted) <= shared

            subgraph = auth_chains.conflicted_subgraph(connection, [nids[int(i[1:])] for i in conflicted])
            assert {f"${names[nid]}" for nid in subgraph} == conflicted_subgraph_of(conflicted, events)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=graphs(), cuts=st.sets(st.integers(0, 23)), seed=st.integers(0, 2**32))
def test_the_index_says_what_a_walk_does(shared_database: Database, graph: Graph, cuts: set[int], seed: int) -> None:
    check(shared_database, graph, cuts, random.Random(seed))


def test_a_large_graph(shared_database: Database) -> None:
    choose = random.Random(3)
    graph: Graph = [[]]
    for index in range(1, 600):
        graph.append(sorted({choose.randrange(max(0, index - 30), index) for _ in range(choose.randint(1, 4))}))
    check(shared_database, graph, set(choose.sample(range(600), 40)), choose)


def test_a_line_of_events_is_one_chain(shared_database: Database) -> None:
    graph: Graph = [[], *([index] for index in range(50))]
    with shared_database.begin() as connection:
        nids = store(connection, graph, {10, 30})
        places = auth_chains.positions_of(connection, nids.values())
    assert len({chain for chain, _ in places.values()}) == 1
    assert [places[nids[index]][1] for index in range(51)] == list(range(1, 52))


def test_events_without_a_place_reach_nothing(shared_database: Database) -> None:
    with shared_database.begin() as connection:
        assert auth_chains.reach_of(connection, [10**9]) == {}
        assert auth_chains.auth_chain_nids(connection, []) == set()
        assert auth_chains.auth_difference(connection, [frozenset({10**9}), frozenset()]) == set()
        assert auth_chains.conflicted_subgraph(connection, []) == set()
