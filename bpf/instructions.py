"""BPF instructions as data: eight bytes in, a named tuple of fields out, and the line that people know from
the verifier's log.

Decoding needs nothing but the bytes and their byte order, so that an object can be looked at before any
kernel sees it. The encoding is RFC 9669's; what a number means to one kernel (helpers, kfuncs) is not
decided here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from mapek.bpf.elf import ByteOrder, bad

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
CALL, EXIT, JA = 0x80, 0x90, 0x00
# Goes on or ends a loop as the kernel likes, since 6.9; its source register says which conditional it is.
MAY_GOTO: Final = 0xE5
LD_IMM64: Final = 0x18

PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID, PSEUDO_FUNC = 1, 2, 3, 4
PSEUDO_CALL, PSEUDO_KFUNC_CALL = 1, 2
_SIZES: Final = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
_ALU: Final = {
    0x00: "+=", 0x10: "-=", 0x20: "*=", 0x30: "/=", 0x40: "|=", 0x50: "&=", 0x60: "<<=", 0x70: ">>=",
    0x80: "= -", 0x90: "%=", 0xA0: "^=", 0xB0: "=", 0xC0: "s>>=", 0xD0: "endian",
}  # fmt: skip
_JUMPS: Final = {
    0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&", 0x50: "!=", 0x60: "s>", 0x70: "s>=", 0xA0: "<", 0xB0: "<=",
    0xC0: "s<", 0xD0: "s<=",
}  # fmt: skip
_ATOMICS: Final = {0x00: "add", 0x40: "or", 0x50: "and", 0xA0: "xor", 0xE0: "xchg", 0xF0: "cmpxchg"}

UNKNOWN: Final = "unknown code"

Kind = Literal["call", "exit", "jump", "branch", "other"]


def _kind(code: int) -> Kind:
    if code & 7 not in (JMP, JMP32):
        return "other"
    operation = code & 0xF0
    if operation == JA:
        return "jump"
    if code & 7 == JMP32:
        return "branch"
    return "call" if operation == CALL else "exit" if operation == EXIT else "branch"


KINDS: Final = tuple(_kind(code) for code in range(256))
"""What each opcode does to the flow of control."""


# A tuple and no dataclass: an object has thousands, and each start of a sensor makes them.
class Instruction(NamedTuple):
    """One instruction.

    Args:
        slot: in instruction slots of eight bytes from the start of its function; a 64-bit load takes two.
        imm: the signed 32-bit immediate, or for a 64-bit load all 64 bits, unsigned.
    """

    slot: int
    code: int
    dst: int
    src: int
    off: int
    imm: int

    @property
    def slots(self) -> int:
        """How many slots it takes: two for a 64-bit load, else one."""
        return 2 if self.code == LD_IMM64 else 1

    @property
    def kind(self) -> Kind:
        """What it does to the flow of control."""
        return KINDS[self.code]

    @property
    def target(self) -> int:
        """The slot that a jump or a branch goes to. A 32-bit JA (`gotol`) has it in `imm`."""
        far = self.code == JMP32 | JA
        return self.slot + 1 + (self.imm if far else self.off)

    def __str__(self) -> str:
        return text(self)


def decode(data: bytes | memoryview, byteorder: ByteOrder, on: object = "object") -> tuple[Instruction, ...]:
    """All instructions of a function. Raises ObjectError for a length or a 64-bit load that is cut short."""
    if len(data) % 8:
        raise bad(on, f"{len(data)} bytes of code are no whole instructions")
    return tuple(_decode(data, byteorder, on))


def _decode(data: bytes | memoryview, byteorder: ByteOrder, on: object) -> Iterator[Instruction]:
    little = byteorder == "little"
    dst, src = (0, 4) if little else (4, 0)
    wide: Instruction | None = None
    slots = struct.iter_unpack("<BBhi" if little else ">BBhi", data)
    for index, (code, registers, off, imm) in enumerate(slots):
        if wide is not None:
            yield wide._replace(imm=wide.imm & 0xFFFFFFFF | (imm & 0xFFFFFFFF) << 32)
            wide = None
            continue
        one = Instruction(index, code, registers >> dst & 15, registers >> src & 15, off, imm)
        if code == LD_IMM64:
            wide = one
        else:
            yield one
    if wide is not None:
        raise bad(on, f"the 64-bit load at {wide.slot} is cut short")


def unknown(code: Iterable[Instruction]) -> Instruction | None:
    """The first that is no instruction, or None. Looks only once at what differs in registers and numbers alone."""
    seen: set[tuple[int, int]] = set()
    for one in code:
        # An atomic operation says in its immediate which it is, and MAY_GOTO in its source.
        key = one.code, one.imm if one.code & 0xE7 == 0xC3 else one.src if one.code == MAY_GOTO else 0
        if key not in seen:
            if text(one).startswith(UNKNOWN):
                return one
            seen.add(key)
    return None


def text(one: Instruction) -> str:
    """The instruction in the notation of the verifier's log; ".8byte" words for what is no instruction."""
    form = {LD: _load, LDX: _load, ST: _store, STX: _store, ALU: _alu, ALU64: _alu}.get(one.code & 7, _jump)
    return form(one) or f"{UNKNOWN} {one.code:#04x}"


def _load(one: Instruction) -> str:
    size, mode = _SIZES[one.code & 0x18], one.code & 0xE0
    if one.code == LD_IMM64:
        return f"r{one.dst} = {one.imm:#x}"
    if one.code & 7 == LD:
        # The classic loads of socket filters.
        where = {0x20: f"{one.imm}", 0x40: f"r{one.src} + {one.imm}"}.get(mode, "")
        return f"r0 = *({size} *)skb[{where}]" if where else ""
    sign = {0x60: "", 0x80: "s"}.get(mode)
    if sign is None:
        return ""
    return f"r{one.dst} = *({size.replace('u', 's') if sign else size} *)(r{one.src} {one.off:+d})"


def _store(one: Instruction) -> str:
    size, mode = _SIZES[one.code & 0x18], one.code & 0xE0
    where = f"*({size} *)(r{one.dst} {one.off:+d})"
    if mode == 0x60:
        return f"{where} = " + (f"r{one.src}" if one.code & 7 == STX else str(one.imm))
    if mode == 0xC0 and one.code & 7 == STX:
        name = _ATOMICS.get(one.imm & 0xF0)
        fetch = "fetch_" if one.imm & 1 and one.imm & 0xF0 < 0xE0 else ""
        return f"lock {fetch}{name}({where}, r{one.src})" if name else ""
    return ""


def _alu(one: Instruction) -> str:
    operation, wide = _ALU.get(one.code & 0xF0), one.code & 7 == ALU64
    if operation is None:
        return ""
    register = f"{'r' if wide else 'w'}{one.dst}"
    if operation == "endian":
        name = "bswap" if wide else "be" if one.code & 8 else "le"
        return f"r{one.dst} = {name}{one.imm} r{one.dst}"
    if operation == "= -":
        return f"{register} = -{register}"
    value = f"{'r' if wide else 'w'}{one.src}" if one.code & 8 else str(one.imm)
    return f"{register} {operation} {value}"


def _jump(one: Instruction) -> str:
    wide = one.code & 7 == JMP
    if one.kind == "jump":
        return f"goto {one.target}"
    if one.kind == "exit":
        return "exit"
    if one.kind == "call":
        kind = {PSEUDO_CALL: "pc", PSEUDO_KFUNC_CALL: "kfunc "}.get(one.src, "helper ")
        return f"call {kind}{one.imm:+d}" if one.src == PSEUDO_CALL else f"call {kind}{one.imm}"
    if one.code == MAY_GOTO:
        return "" if one.src else f"may_goto {one.target}"
    operation = _JUMPS.get(one.code & 0xF0)
    if operation is None:
        return ""
    letter = "r" if wide else "w"
    value = f"{letter}{one.src}" if one.code & 8 else str(one.imm)
    return f"if {letter}{one.dst} {operation} {value} goto {one.target}"
