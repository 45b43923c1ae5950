"""The forwarding program of the wires, loaded once for each lab into its wire namespace.

Its two maps are arrays mapped into this process, indexed by the ifindex of a wire's end: setting a fault or
reading a counter is a memory access and takes effect with the next frame.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mapek.bpf import ArrayMap, ObjectSpec, attach_tc, attach_xdp, load, object_path
from mapek.errors import PermanentError

END_TYPE: Final = np.dtype([("drop_below", "<u8"), ("out", "<u4"), ("unused", "<u4")])
COUNT_TYPE: Final = np.dtype(
    [("forwarded", "<u8"), ("dropped", "<u8"), ("flow_forwarded", "<u8"), ("flow_dropped", "<u8")]
)


class WireProgram:
    """Loaded `lab_wire`; open, connect and close are to be called on the wire namespace's thread."""

    def __init__(self) -> None:
        self._life = ExitStack()
        self.ends: NDArray[np.void] = np.empty(0, END_TYPE)
        self.counts: NDArray[np.void] = np.empty(0, COUNT_TYPE)

    def open(self) -> None:
        """Load the object and map its arrays; blocks for milliseconds."""
        self._object = self._life.enter_context(load(ObjectSpec.read(object_path("lab_wire"))))
        ends, counts = self._object.maps["ends"], self._object.maps["counts"]
        assert isinstance(ends, ArrayMap)
        assert isinstance(counts, ArrayMap)
        self.ends, self.counts = ends.view(END_TYPE), counts.view(COUNT_TYPE)

    def connect(self, one: int, other: int) -> None:
        """Forward between two interfaces of this namespace, both directions, without a fault."""
        if max(one, other) >= len(self.ends):
            raise PermanentError("wire up", f"ifindex {max(one, other)}", "too many ends", "use fewer links")
        for here, there in ((one, other), (other, one)):
            self.ends["out"][here] = there
            xdp = attach_xdp(self._object.programs["lab_pass"], here, mode="native")
            self._life.callback(xdp.detach)
            tc = attach_tc(self._object.programs["lab_forward"], here, "ingress")
            self._life.callback(tc.detach)

    def close(self) -> None:
        """Detach and unload; closing twice is fine."""
        self.ends, self.counts = np.empty(0, END_TYPE), np.empty(0, COUNT_TYPE)
        self._life.close()
