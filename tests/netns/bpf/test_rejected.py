"""Programs with one mistake each, given to this kernel's verifier: the cure is named whatever its words are.

tests/unit/bpf/logs holds what kernel 6.18 said to them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, load
from mapek.bpf.build import compiler
from mapek.bpf.verifier import complaint
from mapek.errors import VerifierError

pytestmark = pytest.mark.netns

HERE = Path(__file__).parent
INCLUDE = HERE.parents[2] / "bpf" / "include"
NAMES = (
    "packet_bounds null_value value_bounds unbounded_index not_set no_end kept other_type no_pointer context_field "
    "deep_stack wrong_argument"
).split()


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> ObjectSpec:
    clang = shutil.which(compiler())
    if clang is None:
        pytest.skip("no clang; apt-get install clang-14")
    out = tmp_path_factory.mktemp("rejected") / "rejected.o"
    flags = ["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-nostdinc", "-isystem", str(INCLUDE)]
    subprocess.run(
        [clang, *flags, "-c", str(HERE / "rejected" / "rejected.bpf.c"), "-o", str(out)], check=True
    )
    return ObjectSpec.read(out)


@pytest.mark.parametrize("name", NAMES)
def test_a_rejection_names_line_and_cure(rejected: ObjectSpec, name: str):
    with pytest.raises(VerifierError) as caught:
        load(rejected, programs=[name])
    found = complaint(caught.value.log)
    recorded = complaint((HERE.parents[1] / "unit/bpf/logs" / f"{name}.log").read_text("utf-8"))
    assert found.cure == recorded.cure
    assert found.cure in str(caught.value)
    assert (found.place, found.line) == (recorded.place, recorded.line)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_tried(rejected: ObjectSpec):
    assert set(rejected.programs) == set(NAMES)
