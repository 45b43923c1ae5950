"""Which helpers an object's functions call, read from its bytes by this file alone.

The independent reader beside `mapek.bpf`: it shares no code with the parser, the decoder or the judge that are tested
with it, so what they overlook shows. It expects an object that the parser accepted; only the calls are of interest.
"""

from __future__ import annotations

import struct

_CALL, _CALL_REGISTER, _WIDE = 0x85, 0x8D, 0x18
_LOCAL, _KERNEL = 1, 2
"""Source registers of a call that goes to a function of the object, or of the kernel by BTF."""


def raw_helper_calls(data: bytes) -> dict[str, set[int]]:
    """Numbers of the helpers that each function calls, by the function's name; -1 stands for a call of a register."""
    order, mark = ("little", "<") if data[5] == 1 else ("big", ">")
    table, count = struct.unpack_from(mark + "Q", data, 40)[0], struct.unpack_from(mark + "H", data, 60)[0]
    heads = [struct.unpack_from(mark + "IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    symtab = next(head for head in heads if head[1] == 2)
    names = heads[symtab[6]][4]
    found: dict[str, set[int]] = {}
    for at in range(symtab[4], symtab[4] + symtab[5], 24):
        name, info, _, where, value, size = struct.unpack_from(mark + "IBBHQQ", data, at)
        if info & 15 != 2 or not 0 < where < count or not heads[where][2] & 4:
            continue
        start = heads[where][4] + value
        text = data[names + name : data.index(b"\0", names + name)].decode("utf-8", "replace")
        found.setdefault(text, set()).update(_numbers(data[start : start + size], order == "big"))
    return found


def _numbers(code: bytes, big: bool) -> set[int]:
    found, at = set(), 0
    while at < len(code):
        opcode, registers = code[at], code[at + 1]
        source = registers & 15 if big else registers >> 4
        if opcode == _CALL_REGISTER:
            found.add(-1)
        elif opcode == _CALL and source not in (_LOCAL, _KERNEL):
            found.add(int.from_bytes(code[at + 4 : at + 8], "big" if big else "little"))
        at += 16 if opcode == _WIDE else 8
    return found
