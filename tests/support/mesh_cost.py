"""What mesh_filter costs a packet, by PROG_TEST_RUN: `python -m tests.support.mesh_cost` as root prints the table."""

from __future__ import annotations

import random
import struct
from statistics import median

from mapek.bpf import LpmTrieMap, ObjectSpec, load, object_path
from tests.support.mesh_frames import batadv, frame

REPEAT, ROUNDS = 100_000, 9
DENY = struct.pack("=IIQQQQ", 0, 1, 0, 0, 0, 0)
LIMIT = struct.pack("=IIQQQQ", 0, 2, 1, 10**9, 10**9, 0)
SENDER = "fd07::7"


def cost(data: bytes, prefixes: int, program: str = "mesh_filter", policy: bytes | None = None) -> float:
    """Nanoseconds for a run, the median of some."""
    with load(ObjectSpec.read(object_path("mesh_filter"))) as loaded:
        counts, trie = loaded.maps["counts"], loaded.map("prefixes6", LpmTrieMap)
        chance = random.Random(1)
        for number in range(min(prefixes, 1000) + 1):
            counts.update(struct.pack("=I", number), bytes(counts.cpus * 32))
        for number in range(1, prefixes):
            network = b"\xfd\x07" + chance.randbytes(12) + number.to_bytes(2, "big")
            trie.update(trie.prefix(network, 128), struct.pack("=I", number % 1000 + 1))
        if prefixes:
            trie.update(
                trie.prefix(bytes.fromhex("fd070000000000000000000000000007"), 128), struct.pack("=I", 1)
            )
        if policy is not None:
            loaded.maps["policies"].update(struct.pack("=I", 1), policy)
        runs = [loaded.programs[program].test_run(data, repeat=REPEAT).duration_ns for _ in range(ROUNDS)]
        return median(runs)


def main() -> None:
    """Print the table."""
    data = frame(SENDER)
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        empty = median(
            loaded.programs["empty"].test_run(data, repeat=REPEAT).duration_ns for _ in range(ROUNDS)
        )
    print(f"empty program                        {empty:4.0f} ns")
    for name, value in {
        "no prefixes: unknown": cost(data, 0),
        "1000 IPv6 prefixes": cost(data, 1000),
        "1000 IPv6 prefixes, tc": cost(data, 1000, "mesh_filter_tc"),
        "1000, inside a batman-adv unicast": cost(batadv(0x40, data), 1000),
        "1000, denied": cost(data, 1000, policy=DENY),
        "1000, limited": cost(data, 1000, policy=LIMIT),
    }.items():
        print(f"{name:36} {value:4.0f} ns")


if __name__ == "__main__":
    main()
