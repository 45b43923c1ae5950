"""What stands in the way of keeping and adopting: each is said in one line, and nothing that was counted is lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, create_map, load, object_path, pins, read_xdp
from mapek.bpf.layout import Layout, describe, parse
from mapek.bpf.place import Place
from mapek.errors import PinError
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Traffic, agent, remove_pins

pytestmark = [pytest.mark.needs("bpffs")]
UDP4 = "receive_packets,ipv4,udp,no"
OPTIONS = {"interfaces": ["near"], "persist": True}


def another_map(path: Path, kind: str = "hash", value: bytes = bytes(8)) -> None:
    path.unlink()
    with create_map(kind, 4, len(value), 1) as made:
        made.update(bytes(4), value)
        made.pin(path)


def a_program(path: Path) -> None:
    path.unlink()
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        loaded.programs["empty"].pin(path)


def elsewhere(path: Path) -> None:
    aside = path.parent.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)


def back(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
        path.parent.with_name("aside").rename(path)


# What is done to the place, what is said of it, and what mends it without loss, if anything does.
TROUBLES: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], object] | None]] = {
    "no layout": (lambda p: (p / "layout").unlink(), "it has no layout", None),
    "garbage": (lambda p: another_map(p / "layout", "array", b"{]" * 8), "cannot be read", None),
    "newer form": (lambda p: another_map(p / "layout", "array", b'{"version":9}   '), "cannot be read", None),
    "layout a hash": (lambda p: another_map(p / "layout"), "its layout is a map of type hash", None),
    "layout a program": (lambda p: a_program(p / "layout"), "its layout: it is a prog", None),
    "no map": (lambda p: (p / "map:counters").unlink(), "it has no map:counters", None),
    "another map": (
        lambda p: another_map(p / "map:counters"), "not what the layout says: type is hash, was percpu_array", None,
    ),
    "a program": (lambda p: a_program(p / "map:counters"), "map:counters: it is a prog", None),
    "foreign directory": (
        lambda p: os.chown(p, 65534, 65534), "it belongs to user 65534", lambda p: os.chown(p, 0, 0),
    ),
    "foreign pin": (
        lambda p: os.chown(p / "map:counters", 65534, 65534),
        "it belongs to user 65534",
        lambda p: os.chown(p / "map:counters", 0, 0),
    ),
    "link": (elsewhere, "it is no directory", back),
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
def test_it_is_refused_and_left_alone(quiet, tmp_path, trouble):
    harm, word, mend = TROUBLES[trouble]
    with Traffic(udp()) as traffic:
        with agent("xdp_counter", OPTIONS, tmp_path) as first:
            traffic.start()
            traffic.go_on()
            first.ask()
            first.kill()
        (folder,) = pins.agents(pins.root())
        path = Place(folder, "xdp_counter", "near").path
        harm(path)
        link = read_xdp(quiet.near)
        with agent("xdp_counter", OPTIONS, tmp_path) as second:
            assert second.said["kind"] == "PinError"
            said = str(second.said["error"])
            assert word in said
            assert "\n" not in said
            second.stop()
        assert read_xdp(quiet.near) == link
        if mend is not None:
            mend(path)
            with agent("xdp_counter", OPTIONS, tmp_path) as third:
                traffic.go_on()
                traffic.stop()
                assert third.rows()["near"][UDP4] == traffic.sent
                third.kill()


def test_what_was_half_made_is_removed_and_what_is_open_is_closed(quiet, tmp_path):
    with agent("xdp_counter", OPTIONS, tmp_path) as first:
        first.ask()
        first.kill()
    (folder,) = pins.agents(pins.root())
    half = folder / "new:xdp_counter:near"
    half.mkdir()
    (folder / "xdp_counter:near" / "map:counters").rename(half / "map:counters")
    os.link(half / "map:counters", folder / "xdp_counter:near" / "map:counters")
    folder.chmod(0o777)
    with agent("xdp_counter", OPTIONS, tmp_path) as second:
        assert second.said["degraded"] == []
        second.kill()
    assert not half.exists()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


MOUNTS = """
import ctypes, subprocess
assert ctypes.CDLL(None).unshare(0x20000) == 0
for command in ("mount --make-rprivate /", {how!r}):
    subprocess.run(command.split(), check=True)
"""
REFUSE = """
from mapek.bpf import syscall
known, left = syscall.bpf_at, [{after}]
def refusing(command, address, size):
    if command == 6:
        left[0] -= 1
        if left[0] < 0:
            return -{code}
    return known(command, address, size)
syscall.bpf_at = refusing
"""


@pytest.mark.parametrize(
    "how", ["mount -o remount,ro,bind /sys/fs/bpf", "mount -t tmpfs none /sys/fs/bpf", "umount /sys/fs/bpf"]
)
def test_without_a_bpffs_it_counts_and_says_so(quiet, tmp_path, how):
    prelude = MOUNTS.format(how=how)
    with Traffic(udp()) as traffic, agent("xdp_counter", OPTIONS, tmp_path, prelude) as alone:
        (word,) = alone.said["degraded"]  # type: ignore[misc, attr-defined]
        begun = "what xdp_counter:near counts does not outlive this agent: "
        assert word.startswith(begun)
        traffic.start()
        traffic.go_on()
        traffic.stop()
        assert alone.rows()["near"][UDP4] == traffic.sent
        alone.stop()
    assert read_xdp(quiet.near) is None


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize(("code", "word"), [(28, "No space left on device"), (1, "not on a bpffs")])
def test_a_pin_that_is_refused(quiet, tmp_path, after, code, word):
    """Whichever it is, the sensor works without, or the whole attachment is taken back; and nothing is left."""
    with agent("xdp_counter", OPTIONS, tmp_path, REFUSE.format(after=after, code=code)) as one:
        said = one.said.get("error") or one.said["degraded"]
        assert word in str(said)
        one.ask()
        one.stop()
    assert read_xdp(quiet.near) is None
    remove_pins()


def test_layouts_are_told_apart():
    spec = ObjectSpec.read(object_path("mesh_filter"))
    names = ("policies", "counts", "prefixes6")
    one = describe(
        spec, names, max_entries={"counts": 5}, meaning={"a": "b"}, namespace="n", settings={"c": "d"}
    )
    assert parse(one.text(), Path("x")) == one
    assert one.maps["policies"]["value.lock.val"] == "u32 of 4 bytes at byte 0"
    assert one.maps["prefixes6"]["key.address[16]"] == "u8 of 1 bytes at byte 4"
    assert "entries" not in one.maps["counts"]
    assert one.difference(one) == ""
    # Another object, other settings: the entries are the same.
    assert one.difference(describe(spec, names, meaning={"a": "b"})) == ""
    assert one.difference(describe(spec, names, meaning={"a": "c"})) == "what is counted: a is c, was b"
    assert one.difference(Layout({}, {"a": "b"})) == ""
    for text in (b"", b"[]", b"{}", b"[" * 9999, b'{"version":1,"maps":[],"meaning":{}}', b"\xff"):
        with pytest.raises(PinError, match="cannot be read"):
            parse(text, Path("x"))
