"""The quick attacks, with bars that hold on a machine that runs other tests beside them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.attack import Attack, all_attacks
from tests.abuse.measuring import QUICK, measure
from tests.abuse.stage import Stage, Stages
from tests.abuse.watching import Watch

Shared = tuple[Stage, Watch]
ATTACKS = [attack for attack in all_attacks().values() if attack.is_quick]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(tmp_path_factory.mktemp("abuse"))


@pytest.fixture(scope="module")
def shared(stages: Stages) -> Iterator[Shared]:
    """One server for all attacks that need no settings of their own."""
    with stages.new("sqlite") as stage, Watch(stage.base_url) as watch:
        yield stage, watch


@pytest.mark.xdist_group("abuse")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_innocent_users_do_not_notice(attack: Attack, stages: Stages, request: pytest.FixtureRequest) -> None:
    if attack.settings:
        with stages.new("sqlite", attack.settings) as stage, Watch(stage.base_url) as watch:
            result = measure(attack, stage, watch, QUICK)
    else:
        stage, watch = request.getfixturevalue("shared")
        result = measure(attack, stage, watch, QUICK)
    print(result.line())
    assert result.faults == ()


def test_every_attack_says_what_it_does() -> None:
    assert [attack.name for attack in all_attacks().values() if not attack.summary] == []
