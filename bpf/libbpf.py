"""A private ctypes binding to the system's `libbpf.so.1`: only what loading objects and ring buffers need.

Every argument and result type is declared, because a default int result truncates pointers. libbpf 1.x
returns -errno, or NULL with errno set. Its own prints would go to stderr; they are kept per thread instead,
so that an error can quote them. The trade-off: the print hook is one per process, so another user of libbpf
in the same process loses its prints.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Final

from mapek.errors import FeatureError

PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
SAMPLE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)

_SIGNATURES: Final[dict[str, tuple[object, tuple[object, ...]]]] = {
    "libbpf_major_version": (c_uint32, ()),
    "libbpf_minor_version": (c_uint32, ()),
    "libbpf_set_print": (c_void_p, (PRINT_FN,)),
    "bpf_object__open_mem": (c_void_p, (c_void_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__autoload": (c_bool, (c_void_p,)),
    "bpf_program__set_log_buf": (c_int, (c_void_p, c_void_p, c_size_t)),
    "bpf_program__set_log_level": (c_int, (c_void_p, c_uint32)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__is_internal": (c_bool, (c_void_p,)),
    "bpf_map__reuse_fd": (c_int, (c_void_p, c_int)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__set_autocreate": (c_int, (c_void_p, c_bool)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "ring_buffer__new": (c_void_p, (c_int, SAMPLE_FN, c_void_p, c_void_p)),
    "ring_buffer__consume": (c_int, (c_void_p,)),
    "ring_buffer__free": (None, (c_void_p,)),
}


class OpenOpts(ctypes.Structure):
    """`struct bpf_object_open_opts` as of libbpf 1.0; `sz` makes it grow compatibly."""

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("_removed", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )


class _Prints(threading.local):
    def __init__(self) -> None:
        self.lines: list[str] = []


_prints = _Prints()
# A list that nobody reads must not grow for ever; an error needs the first lines and the last ones at most.
_MAX_LINES: Final = 256


def _print_hook() -> Callable[..., int]:
    libc = ctypes.CDLL(None)
    libc.vsnprintf.restype = c_int
    libc.vsnprintf.argtypes = (c_void_p, c_size_t, c_void_p, c_void_p)

    # A va_list is handed on as the pointer or pointer-sized value that it is in every 64-bit and ARM ABI.
    def keep(level: int, form: int, arguments: int) -> int:
        if level <= 1 and len(_prints.lines) < _MAX_LINES:
            buffer = ctypes.create_string_buffer(1024)
            libc.vsnprintf(buffer, len(buffer), form, arguments)
            _prints.lines.append(buffer.value.decode("utf-8", "replace").rstrip())
        return 0

    return PRINT_FN(keep)


# Made once, at import: of two that threads made at the same time, libbpf might be left with the one that is freed.
_PRINT_HOOK: Final = _print_hook()


@functools.cache
def library() -> ctypes.CDLL:
    """The library with all signatures declared, loaded once. Raises FeatureError when it is missing or not
    1.x."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        do = "install libbpf1 (apt-get install libbpf1)"
        raise FeatureError("open", "libbpf.so.1", "the library is missing", do) from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function = getattr(lib, name)
        except AttributeError as error:
            why = f"it has no {name}"
            raise FeatureError("open", "libbpf.so.1", why, "install libbpf1 1.0 or newer") from error
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(_PRINT_HOOK)
    return lib


def take_prints() -> list[str]:
    """What libbpf said in this thread since the last call, warnings and information, oldest first."""
    lines, _prints.lines = _prints.lines, []
    return lines
