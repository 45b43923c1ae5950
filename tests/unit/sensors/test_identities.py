"""The registry of identities and its file: whose an address is, in which order that is told, and until when."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mapek.clock import VirtualClock
from mapek.errors import ConfigError, MapekError
from mapek.sensors.identities import ALLOW, AT_ONCE, DENY, Entry, Identities, Verdict
from mapek.sensors.identity_ends import STALE, Ends
from mapek.sensors.identity_file import MAX_BYTES, parse_file
from mapek.sensors.identity_numbers import FIRST_OWN

A, B, C = (f"spiffe://example.org/{letter}" for letter in "abc")
P, Q, R = (ip_network(f"10.0.{n}.0/24") for n in range(3))
MAC = bytes.fromhex("020000000001")
SECOND = 1_000_000_000


class Told:
    """What a listener was told, in order; and what is so by that."""

    def __init__(self) -> None:
        self.changes: list[tuple[object, int | None]] = []
        self.verdicts: list[tuple[int, Verdict]] = []
        self.table: dict[object, int] = {}
        self.retired: list[list[int]] = []

    def assign(self, addresses) -> None:
        for address, number in addresses.items():
            self.changes.append((address, number))
            if number is None:
                del self.table[address]
            else:
                self.table[address] = number

    def intend(self, number: int, verdict: Verdict) -> None:
        self.verdicts.append((number, verdict))

    def retire(self, numbers) -> None:
        self.retired.append(list(numbers))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def registry(told: Told, clock: VirtualClock) -> Identities:
    made = Identities()
    made.join(told, clock)
    return made


def test_numbers_count_upward_and_are_kept(registry: Identities):
    assert [registry.put(Entry(one)) for one in (A, B, A)] == [FIRST_OWN, FIRST_OWN + 1, FIRST_OWN]
    registry.remove(A)
    assert registry.put(Entry(C)) == FIRST_OWN + 2
    assert registry.put(Entry(A)) == FIRST_OWN
    assert registry.spiffe_id(FIRST_OWN) == A
    assert registry.number(A) == FIRST_OWN
    assert registry.number("spiffe://example.org/never") is None


def test_a_number_is_one_identity_s_for_good(registry: Identities):
    assert registry.put(Entry(A, number=7)) == 7
    assert registry.put(Entry(A)) == 7
    registry.remove(A)
    with pytest.raises(ConfigError, match="number 7 is that of"):
        registry.put(Entry(B, number=7))
    with pytest.raises(ConfigError, match="restart"):
        registry.put(Entry(A, number=8))


def test_new_addresses_come_before_old_ones_go(registry: Identities, told: Told):
    number = registry.put(Entry(A, (P, Q)))
    told.changes.clear()
    registry.put(Entry(A, (Q, R), (MAC,)))
    assert told.changes == [(R, number), (MAC, number), (P, None)]


def test_nothing_is_told_twice(registry: Identities, told: Told):
    registry.put(Entry(A, (P,)))
    told.changes.clear()
    registry.put(Entry(A, (P,)))
    assert told.changes == []


def test_the_latest_claim_holds_and_the_former_gets_it_back(registry: Identities, told: Told):
    a, b = registry.put(Entry(A, (P,))), registry.put(Entry(B, (P,)))
    assert told.table == {P: b}
    registry.remove(B)
    assert told.table == {P: a}
    registry.remove(A)
    assert told.table == {}
    assert told.changes == [(P, a), (P, b), (P, a), (P, None)]


async def test_sources_do_not_remove_each_other_s(registry: Identities, told: Told):
    number = registry.put(Entry(A, (P,)), "svid")
    await registry.replace([Entry(A, (Q,)), Entry(B)], "file")
    assert told.table == {P: number, Q: number}
    await registry.replace([], "file")
    assert told.table == {P: number}
    assert registry.active(number)
    assert not registry.remove(A, "file")
    assert registry.remove(A, "svid")
    assert not registry.active(number)


def test_an_entry_ends_when_it_expires(registry: Identities, told: Told, clock: VirtualClock):
    number = registry.put(Entry(A, (P,), expires_ns=5000))
    registry.put(Entry(B, (Q,), expires_ns=3000))
    clock.advance_to(2999)
    assert set(told.table) == {P, Q}
    clock.advance_to(3000)
    assert told.table == {P: number}
    registry.put(Entry(A, (P,), expires_ns=9000))  # renewed
    clock.advance_to(8999)
    assert told.table == {P: number}
    clock.advance_to(9000)
    assert told.table == {}
    assert registry.expired == 2
    assert registry.entries() == ()


def test_what_expired_while_nobody_listened_ends_when_somebody_does(clock: VirtualClock, told: Told):
    registry = Identities()
    registry.put(Entry(A, (P,), expires_ns=2000))
    clock.advance_to(4000)
    told.assign(registry.addresses())
    registry.join(told, clock)
    assert registry.addresses() != {}
    clock.advance_to(4001)
    assert registry.addresses() == {}
    registry.leave(told)
    registry.leave(told)


def test_a_verdict_is_told_before_the_addresses(registry: Identities, told: Told):
    order: list[object] = []
    told.intend = lambda number, verdict: order.append(verdict)  # type: ignore[method-assign]
    told.assign = lambda addresses: order.append(dict(addresses))  # type: ignore[method-assign]
    number = registry.put(Entry(A, (P,), verdict=DENY))
    registry.put(Entry(A, (P,), verdict=DENY))
    registry.put(Entry(A, (P,)))
    registry.put(Entry(A, (P,), verdict=ALLOW))
    assert order == [DENY, {P: number}, ALLOW]


async def test_a_set_is_taken_whole_or_not_at_all(registry: Identities, told: Told):
    registry.put(Entry(A, (P,), number=7))
    before = told.table.copy()
    for wrong in (
        [Entry(B, (Q,)), Entry(C, number=7)],
        [Entry(B, (Q,)), Entry(A, number=8)],
        [Entry(B, (Q,), number=9), Entry(C, number=9)],
        [Entry(B, (Q,)), Entry(B)],
    ):
        with pytest.raises(ConfigError) as caught:
            await registry.replace(wrong, "file")
        assert "\n" not in str(caught.value)
    assert told.table == before
    assert registry.number(B) is None


def many(letter: str, count: int, second: int = 1) -> list[Entry]:
    """So many entries with a prefix each, 10.<second>.x.y."""
    return [
        Entry(f"spiffe://example.org/{letter}/{n}", (ip_network(f"10.{second}.{n >> 8}.{n & 255}"),))
        for n in range(count)
    ]


async def test_a_large_set_is_put_in_with_breaths(registry: Identities, told: Told):
    """Never more than a slice between two turns of the loop, and what goes is told as the last."""
    size, turns = 20 * AT_ONCE, [0]
    await registry.replace(many("a", size), "file")
    told.changes.clear()
    replacing = asyncio.ensure_future(registry.replace(many("b", size, second=2), "file"))
    while not replacing.done():
        turns.append(len(told.changes))
        await asyncio.sleep(0)
    turns.append(len(told.changes))
    assert max(later - earlier for earlier, later in pairwise(turns)) <= AT_ONCE
    assert [number is None for _, number in told.changes] == [False] * size + [True] * size
    assert len(told.table) == size


async def test_an_address_that_moves_within_a_set_is_never_nobody_s(registry: Identities, told: Told):
    """From the first entry to the last, slices apart."""
    between = many("x", 3 * AT_ONCE)
    a = await one_of(registry, [Entry(A, (P,)), *between, Entry(B)])
    told.changes.clear()
    await registry.replace([Entry(A), *between, Entry(B, (P,))], "file")
    b = registry.number(B)
    assert told.changes == [(P, b)]
    assert a != b
    await registry.replace([Entry(A, (P,)), *between, Entry(B)], "file")
    assert told.changes == [(P, b), (P, a)]


async def one_of(registry: Identities, entries: list[Entry]) -> int | None:
    await registry.replace(entries, "file")
    return registry.number(entries[0].spiffe_id)


async def test_nobody_takes_a_number_of_a_set_while_it_is_put_in(registry: Identities, told: Told):
    wanted = [*many("x", 3 * AT_ONCE), Entry(A, (P,), number=7)]
    replacing = asyncio.ensure_future(registry.replace(wanted, "file"))
    while told.table == {}:  # noqa: ASYNC110 - it goes on in breaths
        await asyncio.sleep(0)
    assert registry.number(A) is None
    with pytest.raises(ConfigError, match=f"7 is that of {A}"):
        registry.put(Entry(B, number=7))
    with pytest.raises(ConfigError, match="it has number 7"):
        registry.put(Entry(A, number=8))
    assert registry.put(Entry(A, (Q,))) == 7
    await replacing
    assert told.table[P] == told.table[Q] == 7
    # a set that is given up promises nothing any more
    with pytest.raises(ConfigError):
        await registry.replace([Entry(C, number=9), Entry(B, number=7)], "file")
    assert registry.put(Entry(B, number=9)) == 9


async def test_a_set_that_is_cancelled_leaves_what_was_told_true(registry: Identities, told: Told):
    await registry.replace([Entry(A, (P,)), *many("x", 3 * AT_ONCE)], "file")
    replacing = asyncio.ensure_future(registry.replace([Entry(A), *many("y", 3 * AT_ONCE, 2)], "file"))
    while registry.addresses().get(P) is not None:  # noqa: ASYNC110 - it goes on in breaths
        await asyncio.sleep(0)
    assert P in told.table
    replacing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replacing
    assert told.table == registry.addresses()
    registry.put(Entry(A, (Q,)))
    registry.remove(A)
    assert told.table == registry.addresses()


def test_who_ends_is_told_once(registry: Identities, told: Told):
    number = registry.put(Entry(A, (P,)))
    registry.put(Entry(A, (Q,)), "svid")
    registry.remove(A)
    assert told.retired == []
    registry.remove(A, "svid")
    assert told.retired == [[number]]


def test_many_that_expire_together_leave_the_loop_time(registry: Identities, told: Told, clock: VirtualClock):
    for entry in many("x", 3 * AT_ONCE):
        registry.put(Entry(entry.spiffe_id, entry.prefixes, expires_ns=5000))
    clock.advance_to(5000)
    assert registry.expired == AT_ONCE
    clock.advance_to(5010)
    assert registry.expired == 3 * AT_ONCE
    assert told.table == {}


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"spiffe_id": "spiffe://example.org/"}, "slash"),
        ({"spiffe_id": A, "number": -1}, "number"),
        ({"spiffe_id": A, "number": FIRST_OWN}, "number"),
        ({"spiffe_id": A, "macs": (b"\x02" * 5,)}, "source"),
        ({"spiffe_id": A, "macs": (b"\xff" * 6,)}, "source"),
        ({"spiffe_id": A, "macs": (bytes(6),)}, "source"),
    ],
)
def test_entries_that_cannot_be(what, why):
    with pytest.raises(ConfigError, match=why):
        Entry(**what)


@pytest.mark.parametrize(
    "wrong", [("limit",), ("limit", 0, 1), ("limit", 5, 0), ("limit", 2_000_000, 1), ("deny", 5)]
)
def test_verdicts_that_cannot_be(wrong):
    with pytest.raises(ConfigError):
        Verdict(*wrong)


def test_the_life_of_an_entry_goes_on_while_the_machine_sleeps(told: Told, clock: VirtualClock):
    slept = [7 * SECOND]
    registry = Identities(_ends=Ends(lambda: slept[0]))
    registry.join(told, clock)
    registry.put(Entry(A, (P,), expires_ns=clock.now_ns() + 20 * SECOND))
    registry.put(Entry(B, (Q,), expires_ns=clock.now_ns() + 40 * SECOND))
    slept[0] += 30 * SECOND
    # Before anybody looks: its expiry is told by the clock of now.
    registry.put(Entry(C, (R,), expires_ns=clock.now_ns() + 20 * SECOND))
    clock.advance_to(clock.now_ns() + SECOND)
    assert set(told.table) == {Q, R}
    clock.advance_to(clock.now_ns() + 10 * SECOND)
    assert set(told.table) == {R}
    clock.advance_to(clock.now_ns() + 10 * SECOND)
    assert (told.table, registry.expired) == ({}, 3)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 2**40)), min_size=1), st.integers(1, 60))
def test_what_is_renewed_for_ever_takes_no_more_room(renewals, rounds):
    """Not in the registry, and no timer more than those that come before all others."""
    clock, registry = VirtualClock(0), Identities()
    registry.join(Told(), clock)
    for turn in range(rounds):
        for who, life in renewals:
            registry.put(Entry(who, expires_ns=(turn << 40) + life))
            assert len(registry._ends) <= 2 * len(registry.entries()) + STALE
    assert len(clock._timers._heap) <= len(renewals)


class Anything(RuleBasedStateMachine):
    """Whatever happens, what was told adds up to what the registry says, and to a plain model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.slept = 0
        self.clock, self.told = VirtualClock(1), Told()
        self.registry = Identities(_ends=Ends(lambda: self.slept))
        self.registry.join(self.told, self.clock)
        self.model: dict[tuple[str, str], tuple[tuple[object, ...], int | None]] = {}
        self.numbers: dict[str, int] = {}

    @rule(
        source=st.sampled_from("xy"),
        who=st.sampled_from([A, B, C]),
        where=st.sets(st.sampled_from([P, Q, R, MAC]), max_size=3),
        life=st.one_of(st.none(), st.integers(1, 20)),
    )
    def put(self, source, who, where, life):
        expires = None if life is None else self.clock.now_ns() + life * SECOND
        prefixes = tuple(one for one in where if one != MAC)
        entry = Entry(who, prefixes, (MAC,) if MAC in where else (), expires)
        number = self.registry.put(entry, source)
        assert self.numbers.setdefault(who, number) == number
        self.model.pop((source, who), None)
        self.model[source, who] = entry.addresses(), expires

    @rule(source=st.sampled_from("xy"), who=st.sampled_from([A, B, C]))
    def remove(self, source, who):
        assert self.registry.remove(who, source) is (self.model.pop((source, who), None) is not None)

    @rule(by=st.integers(1, 15))
    def wait(self, by):
        self.clock.advance_to(self.clock.now_ns() + by * SECOND)
        self.forget()

    @rule(by=st.integers(2, 15))
    def sleep(self, by):
        """The clock stands still, and lives go on."""
        self.slept += by * SECOND
        self.registry.wake()
        self.clock.advance_to(self.clock.now_ns())
        self.model = {key: (where, end and end - by * SECOND) for key, (where, end) in self.model.items()}
        self.forget()

    def forget(self):
        now = self.clock.now_ns()
        self.model = {key: one for key, one in self.model.items() if one[1] is None or one[1] > now}

    @invariant()
    def agrees(self):
        expected = {
            address: self.numbers[who] for (_, who), (where, _) in self.model.items() for address in where
        }
        assert self.registry.addresses() == expected
        assert self.told.table == expected
        assert len(self.registry._ends) <= 2 * len(self.model) + STALE


TestAnything = Anything.TestCase
TestAnything.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)


# -- the file ----------------------------------------------------------------------------------------------

WALL = 1_800_000_000_000_000_000
GOOD = """
[[identity]]
spiffe_id = "spiffe://example.org/node/b"
number = 7
prefixes = ["10.1.0.2/32", "fd00::2/128", "10.2.0.0/16"]
macs = ["02:00:00:00:00:0B"]
expires = 2027-01-15T08:00:10Z
verdict = "limit"
rate = 1000

[[identity]]
spiffe_id = "spiffe://example.org/node/c"
verdict = "deny"
"""


def test_a_file():
    first, second = parse_file(GOOD.encode(), "f", 5_000_000_000, WALL)
    networks = tuple(map(ip_network, ("10.1.0.2/32", "fd00::2/128", "10.2.0.0/16")))
    # 1.8e18 ns is 08:00:00 on that day
    limit = Verdict("limit", 1000, 100)
    assert first == Entry(
        "spiffe://example.org/node/b", networks, (bytes.fromhex("02000000000b"),), 15_000_000_000, 7, limit
    )
    assert second == Entry("spiffe://example.org/node/c", verdict=DENY)
    assert parse_file(b"", "f", 0, WALL) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[identity]]", "spiffe_id: is missing"),
        ('identity = "x"', "identity: is a string"),
        ("identity = [1]", "array of tables"),
        ("x = 1", "unknown key"),
        ('[[identity]]\nspiffe_id = "spiffe://A/b"', "lower-case"),
        (f'[[identity]]\nspiffe_id = "{A}"\nprefix = []', "did you mean"),
        (f'[[identity]]\nspiffe_id = "{A}"\nprefixes = ["10.0.0.1/24"]', "no prefix"),
        (f'[[identity]]\nspiffe_id = "{A}"\nprefixes = ["fd00::1%eth0"]', "unicast|no prefix"),
        (f'[[identity]]\nspiffe_id = "{A}"\nprefixes = [7]', "not a string"),
        (f'[[identity]]\nspiffe_id = "{A}"\nmacs = ["02:00:00:00:00"]', "no MAC"),
        (f'[[identity]]\nspiffe_id = "{A}"\nmacs = ["02:00:00:00:00:zz"]', "no MAC"),
        (f'[[identity]]\nspiffe_id = "{A}"\nmacs = ["01:00:00:00:00:01"]', "unicast"),
        (f'[[identity]]\nspiffe_id = "{A}"\nnumber = {FIRST_OWN}', "number"),
        (f'[[identity]]\nspiffe_id = "{A}"\nexpires = 2027-01-01T00:00:00', "zone"),
        (f'[[identity]]\nspiffe_id = "{A}"\nexpires = "soon"', "zone"),
        (f'[[identity]]\nspiffe_id = "{A}"\nverdict = "maybe"', "use one of them"),
        (f'[[identity]]\nspiffe_id = "{A}"\nverdict = "limit"', "rate: is missing"),
        (f'[[identity]]\nspiffe_id = "{A}"\nrate = 5', "unknown key"),
        ("[[identity", "no TOML"),
        ("\udc80", "no TOML"),
    ],
)
def test_files_that_cannot_be_meant(text: str, why: str):
    with pytest.raises(ConfigError, match=why) as caught:
        parse_file(text.encode("utf-8", "surrogateescape"), "f.toml", 0, WALL)
    assert "f.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large():
    with pytest.raises(ConfigError, match="4 MiB"):
        parse_file(b"#" * (MAX_BYTES + 1), "f.toml", 0, WALL)


def one_line(error: MapekError) -> None:
    assert "\n" not in str(error)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_entries_or_one_line(data: bytes):
    try:
        parse_file(data, "f", 0, WALL)
    except MapekError as error:
        one_line(error)


VALUES = st.one_of(st.integers(), st.text(max_size=8), st.booleans(), st.floats(allow_nan=False), st.just([]))


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["spiffe_id", "number", "prefixes", "macs", "verdict", "rate"]), VALUES)
)
def test_any_values_are_entries_or_one_line(row):
    def shown(value: object) -> str:
        import json

        return str(value).lower() if isinstance(value, bool) else json.dumps(value)

    text = "[[identity]]\n" + "\n".join(f"{key} = {shown(value)}" for key, value in row.items())
    try:
        parse_file(text.encode("utf-8", "surrogatepass"), "f", 0, WALL)
    except MapekError as error:
        one_line(error)
