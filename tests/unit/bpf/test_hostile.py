"""Objects that a compiler makes and nobody should load: whole files, from bytes to verdict, words and the command."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, words
from mapek.bpf.explain import explain
from mapek.bpf.validate import refuse, validate
from mapek.cli import main
from mapek.errors import ObjectError
from tests.support.clang import compiled

pytestmark = pytest.mark.needs("clang")

HEAD = """#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
"""
MAP = """struct {{
	__uint(type, BPF_MAP_TYPE_{type});
	__uint(max_entries, {entries});
	__type(key, __u32);
	__type(value, __u64);
}} {name} SEC(".maps");
"""
PASS = """SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}
"""
LICENCE = 'char LICENSE[] SEC("license") = "GPL";\n'
CALLS = "".join(
    f"static __attribute__((noinline)) int f{n}(struct xdp_md *ctx)\n{{\n\treturn f{n - 1}(ctx) + 1;\n}}\n"
    for n in range(1, 12)
)
DEEP = (
    "static __attribute__((noinline)) int f0(struct xdp_md *ctx)\n{\n\treturn ctx->rx_queue_index;\n}\n"
    + CALLS
    + 'SEC("xdp")\nint deep(struct xdp_md *ctx)\n{\n\treturn f11(ctx);\n}\n'
)
HOSTILE = {
    "no programs": (MAP.format(type="ARRAY", entries=1, name="m") + LICENCE, "it has no programs"),
    "1000 maps": (
        "".join(MAP.format(type="ARRAY", entries=1, name=f"m{n}") for n in range(1000)) + PASS + LICENCE,
        "1000 of them, more than 64",
    ),
    "a map of 2 GB": (
        MAP.format(type="ARRAY", entries=1 << 28, name="huge") + PASS + LICENCE,
        "map huge would take 2048 MiB",
    ),
    "2 GB for each CPU": (
        MAP.format(type="PERCPU_ARRAY", entries=1 << 28, name="huge") + PASS + LICENCE,
        "map huge would take 2048 MiB",
    ),
    "two licences": (PASS + LICENCE + 'char OTHER[] SEC("license") = "MIT";\n', "it has 2 licences"),
    "no licence that GPL helpers take": (
        PASS.replace("return", 'bpf_trace_printk("x", 2);\n\treturn') + LICENCE.replace("GPL", "MIT"),
        "trace_printk only serve GPL-compatible programs",
    ),
    "calls too deep": (DEEP + LICENCE, "call each other more than 8 deep"),
    "a section of nobody": (PASS.replace('"xdp"', '"xpd"') + LICENCE, "nothing is known of section 'xpd'"),
    "maps of before libbpf 1.0": (
        PASS + LICENCE + 'struct old { int a; };\nstruct old old SEC("maps") = {};\n',
        "as before libbpf 1.0",
    ),
}


def made(folder: Path, text: str, target: str = "bpf") -> Path:
    source = folder / "hostile.bpf.c"
    source.write_text(HEAD + text)
    return compiled(source, target)


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_at_once_and_in_words(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text, says = HOSTILE[kind]
    path = made(tmp_path, text)
    began = time.thread_time()
    spec = ObjectSpec.read(path)
    report = validate(spec)
    words.text(explain(spec, report.anatomy))
    assert time.thread_time() - began < 1
    assert not report.ok
    assert any(says in str(one) for one in report.findings), report.findings
    with pytest.raises(ObjectError) as caught:
        refuse(spec, {}, ())
    assert "\n" not in str(caught.value)
    assert main(["bpf", "validate", str(path)]) == 1
    assert says in capsys.readouterr().out


def test_the_other_byte_order_is_read_and_refused(tmp_path: Path):
    for target, order in (("bpfel", "little"), ("bpfeb", "big")):
        spec = ObjectSpec.read(made(tmp_path, PASS + LICENCE, target))
        assert spec.byteorder == order
        other = [str(one) for one in validate(spec).findings if "-endian, the machine" in one.why]
        assert bool(other) == (order != sys.byteorder)
        assert "XDP_PASS" in words.text(explain(spec))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("x86_64-linux-gnu", "built for machine 62, not for BPF"),
        ("aarch64-linux-gnu", "built for machine 183, not for BPF"),
        ("armv7-linux-gnueabihf", "not a 64-bit ELF file"),
    ],
)
def test_another_architecture_is_no_bpf(
    target: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "other.c"
    source.write_text("int pass(void) { return 2; }\n")
    path = compiled(source, target)
    with pytest.raises(ObjectError, match=says):
        ObjectSpec.read(path)
    for command in ("validate", "explain"):
        assert main(["bpf", command, str(path)]) == 1
        assert says in capsys.readouterr().err
