"""Loads a parsed object into the kernel and owns what comes out of it: programs and maps, each a file
descriptor.

libbpf does the relocations and is dismissed at once: its descriptors are duplicated and its memory is freed,
so a loaded object costs no more than its fds. Loading blocks for milliseconds (the verifier); `load_async`
does it in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Collection, Mapping
from typing import Final, Self, TypeVar

from mapek.bpf import libbpf, syscall
from mapek.bpf.maps import Map, wrap
from mapek.bpf.program import Program
from mapek.bpf.spec import ObjectSpec
from mapek.bpf.validate import refuse
from mapek.bpf.verifier import TOO_LARGE, complaint, summary
from mapek.bpf.worker import in_thread
from mapek.errors import FeatureError, MapekError, ObjectError, VerifierError

M = TypeVar("M", bound=Map)

# Untouched pages of it cost nothing, and the kernel wants room for the whole log before 6.4.
_LOG_SIZE: Final = 16 << 20


class LoadedObject:
    """Programs and maps of one loaded object, by name. A context manager, also an asynchronous one."""

    def __init__(self, spec: ObjectSpec, programs: dict[str, Program], maps: dict[str, Map]) -> None:
        self.spec, self.programs, self.maps = spec, programs, maps

    def map(self, name: str, kind: type[M]) -> M:
        """The map `name` as what it is, for type checkers and for people; raises ObjectError when it is not
        that."""
        found = self.maps.get(name)
        if not isinstance(found, kind):
            why = "there is none" if found is None else f"it is of type {found.type}"
            raise ObjectError("find map", name, why, f"{self.spec.path} has {', '.join(self.maps)}")
        return found

    def close(self) -> None:
        """Close every fd; twice is fine. What is attached by a link or pinned goes on running."""
        for program in self.programs.values():
            program.close()
        for map_ in self.maps.values():
            map_.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def load(
    spec: ObjectSpec,
    *,
    programs: Collection[str] | None = None,
    rodata: Mapping[str, int | bytes] | None = None,
    reuse: Mapping[str, Map | int] | None = None,
    max_entries: Mapping[str, int] | None = None,
    skip_maps: Collection[str] = (),
    btf: str | None = None,
) -> LoadedObject:
    """Load an object into the kernel; blocks for milliseconds.

    Args:
        programs: load only these (default: all).
        rodata: values of `const volatile` globals, integers or bytes of the exact size.
        reuse: maps to use instead of new ones, by name (a Map or a fd; the caller keeps its own).
        max_entries: sizes of maps, by name.
        skip_maps: maps not to create, for kernels that lack their type; no loaded program may use them.
        btf: a file with the BTF of this kernel, for the CO-RE relocations of one that carries none itself.

    Raises:
        ObjectError: unknown names, wrong byte order, what `mapek.bpf.validate` refuses by its default rules, or
            libbpf refuses the object.
        VerifierError: the kernel rejects a program.
        PrivilegeError: names the missing capability. FeatureError: names the kernel version that brings the
            feature.
    """
    spec.check_byteorder()
    _check_names(spec, programs, rodata or {}, (*(reuse or {}), *(max_entries or {}), *skip_maps))
    refuse(spec, max_entries or {}, (*(reuse or {}), *skip_maps))
    lib = libbpf.library()
    libbpf.take_prints()
    raw = ctypes.create_string_buffer(spec.raw, len(spec.raw))
    name = os.path.basename(spec.path).split(".")[0].encode("utf-8", "replace")
    opts = libbpf.OpenOpts(
        sz=ctypes.sizeof(libbpf.OpenOpts),
        object_name=name or b"object",
        btf_custom_path=None if btf is None else os.fsencode(btf),
    )
    handle = lib.bpf_object__open_mem(raw, len(spec.raw), ctypes.byref(opts))
    if not handle:
        why = "; ".join(libbpf.take_prints()[-2:]) or os.strerror(ctypes.get_errno())
        raise ObjectError("open", spec.path, _oneline(why), "rebuild it with make bpf")
    log = mmap.mmap(-1, _LOG_SIZE)
    pointer = (ctypes.c_char * _LOG_SIZE).from_buffer(log)
    try:
        wanted = _prepare(lib, handle, spec, programs, ctypes.addressof(pointer))
        for name_, handle_map in _maps_of(lib, handle):
            _prepare_map(
                lib, spec, name_, handle_map, rodata or {}, reuse or {}, max_entries or {}, skip_maps
            )
        code = lib.bpf_object__load(handle)
        if code < 0:
            raise _load_error(spec, -code, log)
        return _take(lib, handle, spec, wanted, set(skip_maps))
    finally:
        lib.bpf_object__close(handle)
        del pointer
        log.close()


async def load_async(
    spec: ObjectSpec,
    *,
    programs: Collection[str] | None = None,
    rodata: Mapping[str, int | bytes] | None = None,
    reuse: Mapping[str, Map | int] | None = None,
    max_entries: Mapping[str, int] | None = None,
    skip_maps: Collection[str] = (),
    btf: str | None = None,
) -> LoadedObject:
    """`load` in a worker thread, which keeps the caller's network namespace."""
    return await in_thread(
        lambda: load(
            spec,
            programs=programs,
            rodata=rodata,
            reuse=reuse,
            max_entries=max_entries,
            skip_maps=skip_maps,
            btf=btf,
        ),
        LoadedObject.close,
    )


def _oneline(text: str) -> str:
    return " ".join(text.replace("libbpf: ", "").split())


def _check_names(
    spec: ObjectSpec,
    programs: Collection[str] | None,
    rodata: Mapping[str, int | bytes],
    maps: Collection[str],
) -> None:
    for kind, given, known in (
        ("program", programs or (), spec.programs),
        ("map", maps, spec.maps),
        ("constant", rodata, [v.name for v in spec.variables.values() if v.section == ".rodata"]),
    ):
        for name in given:
            if name not in known:
                raise ObjectError(
                    "load", spec.path, f"it has no {kind} {name!r}", f"it has {', '.join(known) or 'none'}"
                )


def _maps_of(lib: ctypes.CDLL, handle: int) -> list[tuple[str, int]]:
    found = []
    current = lib.bpf_object__next_map(handle, None)
    while current:
        name = lib.bpf_map__name(current).decode("utf-8", "replace")
        # libbpf calls the data section .rodata of xdp_counter "xdp_coun.rodata".
        if lib.bpf_map__is_internal(current) and "." in name:
            name = name[name.index(".") :]
        found.append((name, current))
        current = lib.bpf_object__next_map(handle, current)
    return found


def _prepare(
    lib: ctypes.CDLL, handle: int, spec: ObjectSpec, programs: Collection[str] | None, log: int
) -> dict[str, int]:
    wanted = {}
    current = lib.bpf_object__next_program(handle, None)
    while current:
        name = lib.bpf_program__name(current).decode("utf-8", "replace")
        chosen = lib.bpf_program__autoload(current) if programs is None else name in programs
        lib.bpf_program__set_autoload(current, chosen)
        if chosen:
            lib.bpf_program__set_log_buf(current, log, _LOG_SIZE)
            wanted[name] = current
        current = lib.bpf_object__next_program(handle, current)
    return wanted


def _prepare_map(
    lib: ctypes.CDLL,
    spec: ObjectSpec,
    name: str,
    handle: int,
    rodata: Mapping[str, int | bytes],
    reuse: Mapping[str, Map | int],
    max_entries: Mapping[str, int],
    skip_maps: Collection[str],
) -> None:
    code = 0
    if name in skip_maps:
        code = lib.bpf_map__set_autocreate(handle, False)
    elif name in reuse:
        given = reuse[name]
        fd = given if isinstance(given, int) else given.fd
        _check_shape(spec, name, fd)
        code = lib.bpf_map__reuse_fd(handle, fd)
    elif name in max_entries:
        code = lib.bpf_map__set_max_entries(handle, max_entries[name])
    if code < 0:
        why = "; ".join(libbpf.take_prints()[-2:]) or os.strerror(-code)
        raise ObjectError("prepare map", name, _oneline(why), "check its type and sizes")
    if name == ".rodata" and rodata:
        size = ctypes.c_size_t()
        start = lib.bpf_map__initial_value(handle, ctypes.byref(size))
        for variable, value in rodata.items():
            place = spec.variables[variable]
            data = _constant(spec, place.name, value, place.size, place.signed)
            if not start or place.offset + len(data) > size.value:
                raise ObjectError(
                    "set constant", variable, "libbpf sees another .rodata than we do", "report this object"
                )
            ctypes.memmove(start + place.offset, data, len(data))


def _check_shape(spec: ObjectSpec, name: str, fd: int) -> None:
    """libbpf takes any map for any other, and the verifier's complaint about it is hard to read."""
    wanted = spec.maps[name]
    with wrap(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), name) as given:
        for what, found, needed in (
            ("type", given.type, wanted.type),
            ("key bytes", given.key_size, wanted.key_size),
            ("value bytes", given.value_size, wanted.value_size),
        ):
            if found != needed:
                why = f"{what} {found}, not {needed}"
                raise ObjectError("reuse map", name, why, "give a map of the same shape")


def _constant(spec: ObjectSpec, name: str, value: int | bytes, size: int, signed: bool) -> bytes:
    try:
        data = value if isinstance(value, bytes) else int(value).to_bytes(size, spec.byteorder, signed=signed)
    except OverflowError as error:
        raise ObjectError(
            "set constant", name, f"{value!r} does not fit {size} bytes", "give a smaller one"
        ) from error
    if len(data) != size:
        raise ObjectError("set constant", name, f"{len(data)} bytes do not fit {size}", "give the exact size")
    return data


def _take(
    lib: ctypes.CDLL, handle: int, spec: ObjectSpec, wanted: dict[str, int], skipped: set[str]
) -> LoadedObject:
    loaded = LoadedObject(spec, {}, {})
    try:
        for name, program in wanted.items():
            fd = fcntl.fcntl(lib.bpf_program__fd(program), fcntl.F_DUPFD_CLOEXEC, 3)
            loaded.programs[name] = Program(fd, name)
        for name, map_ in _maps_of(lib, handle):
            if name not in skipped and (fd := lib.bpf_map__fd(map_)) >= 0:
                loaded.maps[name] = wrap(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), name)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _load_error(spec: ObjectSpec, code: int, log: mmap.mmap) -> MapekError:
    prints = libbpf.take_prints()
    log.seek(0)
    end = log.find(b"\0")
    text = log.read(max(end, 0)).decode("utf-8", "replace")
    said = _oneline(
        "; ".join(p for p in prints if "failed" in p or "error" in p.lower() or "unknown" in p)[:400]
    )
    program = next(
        (p.split("'")[1] for p in prints if p.count("'") >= 2 and "BPF program load failed" in p), ""
    )
    on = f"{os.path.basename(spec.path)}" + (f" program {program}" if program else "")
    wanted = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
    if code in (errno.EPERM, errno.EACCES) and (syscall.missing_capabilities(*wanted) or not text):
        return syscall.explain(code, "load", on, wanted=wanted)
    if len(text) > _LOG_SIZE - 4096:
        # Before 6.4 the kernel keeps the beginning, and its verdict is lost. Seen where a program has too many ways.
        why = f"the verifier filled its log of {_LOG_SIZE >> 20} MiB before it came to an end"
        return VerifierError("load", on, why, f"{TOO_LARGE}; the log so far is in .log", log=text)
    if text:
        from mapek.bpf.features import version_of_complaint

        line = summary(text)
        if needs := version_of_complaint(line):
            return FeatureError("load", on, line, f"it needs {needs}")
        found = complaint(text)
        held = f" ({found.register})" if ", which" in found.register else ""
        do = f"{found.cure}; the whole log is in .log" if found.cure else "the whole log is in .log"
        return VerifierError("load", on, line + held, do, log=text)
    if code == errno.ESRCH:
        do = "use a kernel with CONFIG_DEBUG_INFO_BTF, or an object without CO-RE relocations"
        return FeatureError("load", on, said or "the kernel has no BTF", do)
    from mapek.bpf.features import version_of_map

    missing = version_of_map(spec, prints)
    if missing:
        return FeatureError("load", on, said or os.strerror(code), f"it needs {missing}")
    error = syscall.explain(code, "load", on, wanted=wanted)
    if said and not isinstance(error, FeatureError):
        return ObjectError("load", on, said, "see its maps and programs with ObjectSpec.read")
    return error
