"""Every way a configuration can be wrong: one line that names file, key, what is wrong and what to do."""

# ruff: noqa: E501 -- messages stand here as they are printed, on one line
from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.config import load_config, parse_config
from mapek.errors import ConfigError

KEY = "00112233445566778899aabbccddeeff" * 2
GOOD = """\
[node]
name = "a"
addresses = ["10.255.0.1", "fd6d:6170::1"]
[loop]
profile = "fast"
[service]
listen = ""
[[peer]]
name = "b"
addresses = ["10.255.0.2", "fd6d:6170::2"]
prefixes = ["10.255.0.2/32", "fd6d:6170::2/128", "fd00:b::/32"]
key_file = "ab.key"
[[peer.path]]
interface = "l1"
address = "fe80::2:2"
preference = 5
[[peer.path]]
interface = "l0"
address = "fe80::1:2"
local = "fe80::1:1"
"""


def test_an_unauthenticated_peer_needs_no_key(tmp_path: Path) -> None:
    text = GOOD.replace('key_file = "ab.key"', "unauthenticated = true")
    (tmp_path / "mesh.toml").write_text(text)
    peer = load_config(tmp_path / "mesh.toml").topology.peers["b"]
    assert (peer.unauthenticated, peer.key) == (True, b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    key = tmp_path / "ab.key"
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    return tmp_path


def _failure(folder: Path, text: str) -> str:
    file = folder / "mesh.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message.replace(str(file), "FILE").replace(str(folder), "DIR")


def test_a_whole_configuration(folder: Path) -> None:
    (folder / "mesh.toml").write_text(GOOD)
    config = load_config(folder / "mesh.toml")
    assert config.topology.node == config.node.name == "a"
    assert config.topology.addresses == (ip_address("10.255.0.1"), ip_address("fd6d:6170::1"))
    peer = config.topology.peers["b"]
    assert peer.key == bytes.fromhex(KEY)
    assert [path.interface for path in peer.paths] == ["l0", "l1"]  # by preference
    assert peer.paths[0].local == ip_address("fe80::1:1")
    assert peer.prefixes[2] == ip_network("fd00:b::/32")
    assert config.loop.profile == "fast"
    assert config.service.host == ""
    assert config.file == folder / "mesh.toml"


def test_prefixes_default_to_the_addresses(folder: Path) -> None:
    text = GOOD.replace('prefixes = ["10.255.0.2/32", "fd6d:6170::2/128", "fd00:b::/32"]\n', "")
    config = parse_config(text, folder / "mesh.toml")
    assert config.topology.peers["b"].prefixes == (
        ip_network("10.255.0.2/32"),
        ip_network("fd6d:6170::2/128"),
    )


def test_an_ipv4_path_carries_ipv4_prefixes(folder: Path) -> None:
    text = GOOD.replace(', "fd6d:6170::2/128", "fd00:b::/32"]', "]").replace(
        '"10.255.0.2", "fd6d:6170::2"', '"10.255.0.2"'
    )
    text = text.replace('"fe80::2:2"', '"10.1.1.2"')
    config = parse_config(text, folder / "mesh.toml")
    assert config.topology.peers["b"].paths[1].address == ip_address("10.1.1.2")


WRONG = {
    "unknown table": ("[loop]", "[lop]\n[loop]", 'read FILE: lop: unknown key; did you mean "loop"?'),
    "unknown key": ('profile = "fast"', 'profil = "fast"', 'read FILE: [loop] profil: unknown key; did you mean "profile"?'),
    "wrong type": ('name = "a"', "name = 7", "read FILE: [node] name: is a whole number, not a string; put it in quotes"),
    "one of": (
        '"fast"',
        '"faster"',
        'read FILE: [loop] profile: is "faster", not "default" or "fast"; use one of them',
    ),
    "switch": (
        'profile = "fast"',
        'realtime = "yes"',
        "read FILE: [loop] realtime: is 'yes'; write \"auto\", true or false",
    ),
    "bad address": (
        '"10.255.0.1"',
        '"10.255.0"',
        'read FILE: [node] addresses[0]: "10.255.0" is not an IP address; write it like 10.0.0.1 or fd00::1',
    ),
    "link-local address of a node": (
        '"fd6d:6170::1"',
        '"fe80::1"',
        'read FILE: [node] addresses[1]: "fe80::1" holds on one link only; write an address that every path leads to',
    ),
    "address twice": (
        '"fd6d:6170::1"',
        '"10.255.0.1"',
        "read FILE: [node] addresses[1]: 10.255.0.1 is there twice; remove one",
    ),
    "multicast": (
        '"fe80::2:2"',
        '"ff02::1"',
        'read FILE: [[peer]] "b" [[peer.path]] 1 address: "ff02::1" is not a unicast address of a node; '
        "write an address of its own",
    ),
    "scope": (
        '"fe80::2:2"',
        '"fe80::2%l1"',
        'read FILE: [[peer]] "b" [[peer.path]] 1 address: "fe80::2%l1" names an interface; '
        "leave out the part from % on: interface says it",
    ),
    "peer is this node": (
        'name = "b"',
        'name = "a"',
        'read FILE: [[peer]] "a" name: "a" is this node itself; give each node its own name',
    ),
    "own address": (
        'addresses = ["10.255.0.2"',
        'addresses = ["10.255.0.1"',
        'read FILE: [[peer]] "b" addresses: 10.255.0.1 is this node\'s own; write the peer\'s',
    ),
    "no address": (
        'addresses = ["10.255.0.2", "fd6d:6170::2"]',
        "",
        'read FILE: [[peer]] "b" addresses: is empty; write at least one: repairs are proved by reaching it',
    ),
    "host bits": (
        '"fd00:b::/32"',
        '"fd00:b::1/32"',
        'read FILE: [[peer]] "b" prefixes[2]: "fd00:b::1/32" is not a prefix; write "fd00:b::/32"',
    ),
    "uncovered address": (
        '"10.255.0.2/32", ',
        "",
        'read FILE: [[peer]] "b" prefixes: none holds the peer\'s address 10.255.0.2; add "10.255.0.2/32": '
        "repairs are proved by reaching it over the route they changed",
    ),
    "IPv4 path": (
        '"fe80::2:2"',
        '"10.1.1.2"',
        'read FILE: [[peer]] "b" [[peer.path]] 1 address: an IPv4 path cannot carry the IPv6 prefix '
        "fd6d:6170::2/128; write the peer's IPv6 address on that link (link-local will do): it carries both",
    ),
    "families": (
        '"fe80::1:1"',
        '"10.1.1.1"',
        'read FILE: [[peer]] "b" [[peer.path]] 2 local: 10.1.1.1 and address fe80::1:2 are of different families; '
        "write both of one family",
    ),
    "same interface": (
        '"l1"',
        '"l0"',
        'read FILE: [[peer]] "b" [[peer.path]] 2 interface: "l0" has a path to this peer already; remove one of them',
    ),
    "interface": (
        '"l1"',
        '"wlan 0"',
        'read FILE: [[peer]] "b" [[peer.path]] 1 interface: "wlan 0" cannot be an interface; write a name of `ip link`',
    ),
    "long interface": (
        '"l1"',
        '"sixteen-letters-"',
        'read FILE: [[peer]] "b" [[peer.path]] 1 interface: is 16 in length; it must be between 1 and 15 in length',
    ),
    "unknown key of a path": (
        "preference = 5",
        "prefrence = 5",
        'read FILE: [[peer]] "b" [[peer.path]] 1 prefrence: unknown key; did you mean "preference"?',
    ),
    "negative": (
        "preference = 5",
        "preference = -1",
        'read FILE: [[peer]] "b" [[peer.path]] 1 preference: is -1; it must be between 0 and 1e+06',
    ),
    "boolean for number": (
        "preference = 5",
        "preference = true",
        'read FILE: [[peer]] "b" [[peer.path]] 1 preference: is true or false, not a whole number; write a whole number',
    ),
    "no key": (
        'key_file = "ab.key"\n',
        "",
        'read FILE: [[peer]] "b" key_file: is missing; set it to a string',
    ),
    "an unauthenticated peer with a key": (
        'key_file = "ab.key"\n',
        'key_file = "ab.key"\nunauthenticated = true\n',
        'read FILE: [[peer]] "b" key_file: an unauthenticated peer has no use for it; remove one of the two',
    ),
    "key is missing": (
        '"ab.key"',
        '"no.key"',
        'read FILE: [[peer]] "b" key_file: "no.key" does not exist; '
        "make it with: (umask 077; openssl rand -hex 32 > DIR/no.key)",
    ),
    "key is a folder": (
        '"ab.key"',
        '"."',
        'read FILE: [[peer]] "b" key_file: "." is not a plain file; '
        "make it with: (umask 077; openssl rand -hex 32 > DIR)",
    ),
    "listen without port": (
        'listen = ""',
        'listen = "127.0.0.1"',
        'read FILE: [service] listen: "127.0.0.1" has no port; write it like "127.0.0.1:9464" or "[::1]:9464"',
    ),
    "listen by name": (
        'listen = ""',
        'listen = "localhost:80"',
        'read FILE: [service] listen: "localhost:80" does not begin with an address; '
        'write "127.0.0.1", "[::1]", or "0.0.0.0" for all: "127.0.0.1:80"',
    ),
    "listen without brackets": (
        'listen = ""',
        'listen = "::1:80"',
        'read FILE: [service] listen: "::1:80" has brackets in the wrong place; write "[::1]:80"',
    ),
    "sensor that is no table": (
        "[service]",
        "[sensors]\nlink_watch = true\n[service]",
        "read FILE: [sensors] link_watch: is not a table; write [sensors.link_watch] on a line of its own",
    ),
    "enabled": (
        "[service]",
        '[sensors.netlink]\nenabled = "no"\n[service]',
        "read FILE: [sensors.netlink] enabled: is a string, not true or false; write it without quotes",
    ),
    "not TOML": ('name = "a"', "name = a", "read FILE: not TOML: Invalid value (at line 2, column 8); mend that line"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(folder: Path, name: str) -> None:
    old, new, message = WRONG[name]
    assert old in GOOD
    assert _failure(folder, GOOD.replace(old, new, 1)) == message


def test_control_characters_never_reach_the_terminal(folder: Path) -> None:
    message = _failure(folder, GOOD.replace('"b"', '"b\\n\\u001b[31m"'))
    assert message.isprintable()


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [
        (0o644, KEY, "can be read or written by others (mode 0644); chmod 0600 DIR/ab.key"),
        (0o620, KEY, "can be read or written by others (mode 0620); chmod 0600 DIR/ab.key"),
        (
            0o600,
            KEY[:30],
            "holds 15 bytes, fewer than 16; make it with: (umask 077; openssl rand -hex 32 > DIR/ab.key)",
        ),
        (0o600, "no hex", "is not hexadecimal; make it with: (umask 077; openssl rand -hex 32 > DIR/ab.key)"),
        (
            0o600,
            "",
            "holds 0 bytes, fewer than 16; make it with: (umask 077; openssl rand -hex 32 > DIR/ab.key)",
        ),
        (
            0o600,
            "00" * 9000,
            "is longer than 4096 bytes; make it with: (umask 077; openssl rand -hex 32 > DIR/ab.key)",
        ),
    ],
)
def test_a_bad_key_file(folder: Path, mode: int, content: str, message: str) -> None:
    key = folder / "ab.key"
    key.write_text(content)
    key.chmod(mode)
    said = _failure(folder, GOOD)
    assert said == f'read FILE: [[peer]] "b" key_file: "ab.key" {message}'
    assert not content or content not in said


def test_a_fifo_in_place_of_a_key_does_not_hang(folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o600)
    assert "is not a plain file" in _failure(folder, GOOD.replace('"ab.key"', '"fifo"'))


def _two(folder: Path, **changes: str) -> str:
    second = GOOD[GOOD.index("[[peer]]") :]
    for old, new in {
        '"b"': '"c"',
        "10.255.0.2": "10.255.0.3",
        "6170::2": "6170::3",
        "fd00:b::": "fd00:c::",
        "fe80::2:2": "fe80::2:3",
        "fe80::1:2": "fe80::1:3",
        **changes,
    }.items():
        second = second.replace(old, new)
    return GOOD + second


def test_two_peers(folder: Path) -> None:
    assert list(parse_config(_two(folder), folder / "m.toml").topology.peers) == ["b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({'"b"': '"b"'}, 'read FILE: [[peer]] name: "b" is there twice; give each peer its own name'),
        (
            {"10.255.0.2": "10.255.0.2"},
            'read FILE: [[peer]] "c" addresses: 10.255.0.2 is also peer "b"; remove it from one of them',
        ),
        (
            {"fd00:b::": "fd00:b::"},
            'read FILE: [[peer]] "c" prefixes: fd00:b::/32 is also behind peer "b"; remove it from one of them',
        ),
        (
            {"fe80::1:2": "fe80::1:2"},
            'read FILE: [[peer]] "c" path: fe80::1:2 on l0 is also peer "b"; give each peer its own',
        ),
    ],
)
def test_two_peers_that_collide(folder: Path, changes: dict[str, str], message: str) -> None:
    assert _failure(folder, _two(folder, **changes)) == message


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_one_line(text: str) -> None:
    with suppress(ConfigError):
        assert parse_config(text, "m.toml").sensors
        return
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "m.toml")
    assert "\n" not in str(caught.value)


def test_deep_nesting_is_refused(folder: Path) -> None:
    assert _failure(folder, "a = " + "[" * 20_000) == "read FILE: not TOML: nested too deeply; mend it"
