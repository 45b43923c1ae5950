"""Chooses the way in which a sensor works here: the best of its variants whose needs are met.

Asks the same probes as `mapek doctor`, so that both say the same. A need whose probe does not know is taken for
met: the attempt shows it, and a wrong "no" would hide a sensor that works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mapek.bpf import features, libbpf, syscall
from mapek.contracts import Variant
from mapek.errors import FeatureError, MapekError, PrivilegeError
from mapek.sensors.cures import cure


@dataclass(frozen=True, slots=True)
class Choice:
    """`variant` is what to use; `passed_over` says why not each better one, by name."""

    variant: Variant
    passed_over: Mapping[str, str]

    def degraded(self) -> tuple[str, ...]:
        """A line for each better variant, for `Status.degraded` and for `mapek doctor`."""
        return tuple(f"{self.variant.name}, not {name}: {why}" for name, why in self.passed_over.items())


def unmet(variant: Variant) -> tuple[str, ...]:
    """The needs of `variant` that this machine surely has not, in the order in which they are asked for; "libbpf"
    is one where programs are loaded. Blocks for milliseconds: use a thread."""
    lacking = tuple(
        syscall.missing_capabilities(*(need for need in variant.needs if need.startswith("CAP_")))
    )
    if "CAP_BPF" in variant.needs:
        try:
            libbpf.library()
        except MapekError:
            lacking += ("libbpf",)
    asked = (need for need in variant.needs if not need.startswith("CAP_"))
    return lacking + tuple(need for need in asked if features.probe(need) is features.Answer.NO)


def missing(variant: Variant) -> str:
    """Why `variant` cannot be used here, in words; "" when it can. Blocks for milliseconds: use a thread."""
    lacking = unmet(variant)
    if capabilities := [need for need in lacking if need.startswith("CAP_")]:
        return f"{' and '.join(capabilities)} missing"
    if "libbpf" in lacking:
        try:
            libbpf.library()
        except MapekError as error:
            return str(error)
    return f"this kernel has no {lacking[0]} ({features.since(lacking[0])})" if lacking else ""


def choose(sensor: str, variants: Sequence[Variant], forced: str = "auto") -> Choice:
    """The first of `variants` that can be used; with `forced`, that one or none. Blocks: use a thread.

    Raises:
        PrivilegeError: only capabilities are missing. FeatureError: the kernel has not what any of them needs.
    """
    considered = [one for one in variants if forced in ("", "auto", one.name)]
    why = {one.name: missing(one) for one in considered}
    for index, one in enumerate(considered):
        if not why[one.name]:
            return Choice(one, {better.name: why[better.name] for better in considered[:index]})
    words = "; ".join(f"{name}: {reason}" for name, reason in why.items())
    kind: type[MapekError] = FeatureError
    do = "leave this sensor out, or use a kernel that has it"
    if words and all(reason.startswith("CAP_") for reason in why.values()):
        kind, do = PrivilegeError, "run as root or grant it"
    raise kind("open", sensor, words or f"there is no variant {forced!r}", do)


def cures(variants: Sequence[Variant], forced: str = "auto") -> tuple[str, ...]:
    """What to do for the best of `variants` that is asked for: a line for each need that is not met, no line twice.
    Blocks: use a thread."""
    considered = [one for one in variants if forced in ("", "auto", one.name)]
    return tuple(dict.fromkeys(cure(need) for one in considered[:1] for need in unmet(one)))
