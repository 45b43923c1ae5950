"""Programs with one mistake each, given to this kernel's verifier: the cure is named whatever its words are.

tests/unit/bpf/logs holds what kernels 6.18, 6.1 and 5.10 said to them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, load
from mapek.bpf.verifier import complaint
from mapek.errors import VerifierError
from tests.support.clang import compiled

pytestmark = pytest.mark.netns

HERE = Path(__file__).parent
NAMES = (
    "packet_bounds null_value value_bounds unbounded_index not_set no_end kept other_type no_pointer context_field "
    "deep_stack wrong_argument packet_offset moved_pointer untested_value moved_context deep_calls wrong_return "
    "too_large kept_lock"
).split()


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> ObjectSpec:
    source = tmp_path_factory.mktemp("rejected") / "rejected.bpf.c"
    shutil.copy(HERE / "rejected" / "rejected.bpf.c", source)
    return ObjectSpec.read(compiled(source))


@pytest.mark.parametrize("name", NAMES)
def test_a_rejection_names_line_and_cure(rejected: ObjectSpec, name: str):
    with pytest.raises(VerifierError) as caught:
        load(rejected, programs=[name])
    found = complaint(caught.value.log)
    recorded = complaint((HERE.parents[1] / "unit/bpf/logs" / f"{name}.log").read_text("utf-8"))
    assert recorded.cure in str(caught.value)
    assert "\n" not in str(caught.value)
    if len(caught.value.log) < 1 << 20:  # else a kernel before 6.4 lost the end of it
        assert found.cure == recorded.cure
        # 6.1 and 5.10 write no file and line into the log.
        assert found.place in (recorded.place, "")
        assert found.line == recorded.line


def test_every_mistake_is_tried(rejected: ObjectSpec):
    assert set(rejected.programs) == set(NAMES)
