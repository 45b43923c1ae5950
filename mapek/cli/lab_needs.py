"""What the lab needs and this machine lacks, said exactly, before anything is begun."""

from __future__ import annotations

import os


def missing_for_lab() -> list[str]:
    """One line for each thing that is missing; empty if the lab can run. Blocks for some milliseconds."""
    from mapek.bpf.capabilities import effective
    from mapek.service.kernel import examine

    lacks: list[str] = []
    if os.geteuid() != 0:
        lacks.append("not root: namespaces, veth and BPF need it; use sudo")
    held = effective()
    wanted = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW")
    without = [name for name in wanted if name not in held] if os.geteuid() == 0 else []
    if without:
        lacks.append(f"without {', '.join(without)}: give the container or the VM more")
    kernel = examine()
    if kernel.trouble:
        lacks.append(kernel.trouble)
    elif os.geteuid() == 0:
        # Without privilege the kernel does not answer, and that was said already.
        lacks += [
            f"the kernel does not answer for {name}: {kernel.features.get(name, 'unknown')}"
            for name in ("prog_test_run", "ringbuf")
            if kernel.features.get(name) != "yes"
        ]
    return lacks
