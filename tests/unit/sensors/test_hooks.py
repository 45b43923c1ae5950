"""What `Hooks` does without a kernel below it."""

from __future__ import annotations

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import AttachError
from mapek.sensors.hooks import Hooks

GONE = 2**31 - 1


async def test_an_interface_that_is_gone_leaves_no_lock_behind():
    hooks, spec = Hooks(), ObjectSpec.read(object_path("empty"))
    with pytest.raises(AttachError, match=f"attach xdp to ifindex {GONE}: there is no such interface"):
        await hooks.join(GONE, "user_a", spec, "empty")
    await hooks.leave(GONE, "user_a")
    assert not hooks._locks
