"""The rehearsal heals made-up failures with the plugins that it is given, and needs nothing else."""

from mapek.analyzers.path_health import PathHealth
from mapek.policies.link_failover import LinkFailover
from mapek.rehearsal import ROUNDS, rehearse
from tests.unit.core.fakes import topology


async def test_every_round_is_healed():
    assert await rehearse(topology(), [PathHealth({})], [LinkFailover({})]) == ROUNDS
    assert await rehearse(topology(3), [PathHealth({})], [LinkFailover({})]) == ROUNDS


async def test_without_another_path_or_a_policy_nothing_is():
    assert await rehearse(topology(1), [PathHealth({})], [LinkFailover({})]) == 0
    assert await rehearse(topology(), [PathHealth({})], []) == 0
    assert await rehearse(topology(), [], [LinkFailover({})]) == 0
