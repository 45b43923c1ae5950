"""Recorded verifier logs in, the lines that matter out."""

from __future__ import annotations

import pytest

from mapek.bpf.verifier import summary

UNREADABLE = """0: R1=ctx() R10=fp0
; return XDP_PASS;
0: (95) exit
R0 !read_ok
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

OUT_OF_BOUNDS = """func#0 @0
0: R1=ctx() R10=fp0
; void *at = (void *)(long)ctx->data; @ xdp_counter.bpf.c:78
0: (61) r1 = *(u32 *)(r1 +0)          ; R1_w=pkt(r=0)
; proto = eth->h_proto; @ packet.h:40
1: (69) r2 = *(u16 *)(r1 +12)
invalid access to packet, off=12 size=2, R1(id=0,off=12,r=0)
R1 offset is outside of the packet
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

NO_HELPER = """0: (85) call unknown#9999
invalid func unknown#9999
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

TOO_LONG = """from 43 to 12: R0=scalar() R1=ctx() R10=fp0
12: (bf) r6 = r1
BPF program is too large. Processed 1000001 insn
processed 1000001 insns (limit 1000000) max_states_per_insn 9 total_states 100 peak_states 99 mark_read 5
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("\0" * 100, ""),
        ("processed 5 insns (limit 1000000)\n", ""),
        (UNREADABLE, "R0 !read_ok, instruction 0: (95) exit, at source line 'return XDP_PASS;'"),
        (
            OUT_OF_BOUNDS,
            "R1 offset is outside of the packet, invalid access to packet, off=12 size=2, "
            "R1(id=0,off=12,r=0), at source line 'proto = eth->h_proto; @ packet.h:40'",
        ),
        (NO_HELPER, "invalid func unknown#9999, instruction 0: (85) call unknown#9999"),
        (TOO_LONG, "BPF program is too large. Processed 1000001 insn, instruction 12: (bf) r6 = r1"),
    ],
)
def test_summary(log: str, expected: str):
    assert summary(log) == expected


def test_a_megabyte_is_summed_up_too():
    log = UNREADABLE.replace(
        "0: (95) exit", "\n".join(f"{i}: (b7) r0 = 0" for i in range(50_000)) + "\n9: (95) exit"
    )
    assert summary(log).startswith("R0 !read_ok, instruction 9: (95) exit")
