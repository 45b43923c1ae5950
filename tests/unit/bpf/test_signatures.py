"""Ed25519 signatures of objects: the vectors of RFC 8032, every form of a key, and what the loader makes of them."""

from __future__ import annotations

import base64
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from mapek.bpf import ObjectSpec, object_path, rules, signatures
from mapek.bpf.rules import Rules
from mapek.bpf.validate import refuse, validate
from mapek.cli import main
from mapek.errors import ConfigError, FeatureError, ObjectError

EMPTY = ObjectSpec.read(object_path("empty"))
COUNTER = ObjectSpec.read(object_path("xdp_counter"))
OWNER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEY = OWNER.public_key().public_bytes_raw()
PEM = OWNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
X25519 = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEAhSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
-----END PUBLIC KEY-----
"""

# RFC 8032, section 7.1: public key, message, signature.
RFC8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC8032, ids=["1", "2", "3"])
def test_the_vectors_of_the_rfc(key, message, signature):
    key, message, signature = map(bytes.fromhex, (key, message, signature))
    assert signatures.signed_by(message, signature, [KEY, key]) == key
    assert signatures.signed_by(message, signature, [KEY]) is None
    for place in (0, 31, 32, 63):
        bent = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        assert signatures.signed_by(message, bent, [key]) is None
    assert signatures.signed_by(message + b"\0", signature, [key]) is None
    assert signatures.signed_by(message, signature[:-1], [key]) is None


@pytest.mark.parametrize(
    "text",
    [PEM, f"\n{PEM}\n", KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), f"{KEY.hex()}\n"],
    ids=["pem", "pem and blank lines", "hex", "upper case", "base64", "with a line end"],
)
def test_forms_of_a_key(text, tmp_path):
    assert signatures.parse_key(text, "k") == KEY
    (tmp_path / "k.pub").write_text(text)
    assert signatures.read_key(tmp_path / "k.pub") == KEY
    (tmp_path / "k.pub").write_bytes(KEY)
    assert signatures.read_key(tmp_path / "k.pub") == KEY


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no Ed25519 public key"),
        (KEY.hex()[:-1], "no Ed25519 public key"),
        (base64.b64encode(KEY[:-1]).decode(), "no Ed25519 public key"),
        (X25519, "no Ed25519 key"),
        (PEM.replace("MCow", "MCox"), "no Ed25519 key"),
        ("é" * 64, "no Ed25519 public key"),
        (
            OWNER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "it is a private key; give the public one",
        ),
    ],
    ids=["empty", "short hex", "short base64", "another curve", "not DER", "no ASCII", "private"],
)
def test_what_is_no_key(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        signatures.parse_key(text, "k")
    assert "\n" not in str(caught.value)
    assert base64.b64encode(bytes(range(32))).decode()[:20] not in str(caught.value)


def signed(spec: ObjectSpec, folder: Path, by: Ed25519PrivateKey = OWNER, name: str = "") -> Path:
    path = folder / (name or f"{Path(spec.path).name}.sig")
    path.write_bytes(by.sign(spec.raw))
    return path


def said(spec: ObjectSpec, rules: Rules, signature: Path | None = None) -> list[str]:
    return [str(one) for one in validate(spec, rules, signature).findings]


def test_an_object_signed_by_one_of_the_keys(tmp_path):
    rules = Rules(keys=(OTHER.public_key().public_bytes_raw(), KEY), signatures=tmp_path)
    (missing,) = said(EMPTY, rules)
    assert "it has no signature" in missing
    assert "openssl pkeyutl -sign" in missing
    path = signed(EMPTY, tmp_path)
    assert said(EMPTY, rules) == []
    path.write_text(base64.encodebytes(OWNER.sign(EMPTY.raw)).decode())
    assert said(EMPTY, rules) == []
    assert said(EMPTY, replace(rules, signatures=None), path) == []
    # It lies beside the object unless said otherwise.
    beside = tmp_path / "e.o"
    beside.write_bytes(EMPTY.raw)
    signed(EMPTY, tmp_path, name="e.o.sig")
    assert said(ObjectSpec.read(beside), Rules(keys=(KEY,))) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (OTHER.sign(EMPTY.raw), "is not one of it by that key"),
        (OWNER.sign(COUNTER.raw), "is not one of it by that key"),
        (OWNER.sign(EMPTY.raw)[:-1], "63 bytes are no Ed25519 signature"),
        (b"", "0 bytes are no Ed25519 signature"),
        (b"\0" * 64, "is not one of it by that key"),
        (OWNER.sign(EMPTY.raw).hex().encode(), "128 bytes are no Ed25519 signature"),
        (b"x" * 5000, "it has more than 4096 bytes"),
    ],
    ids=["another key's", "another object's", "truncated", "empty", "zeros", "hex", "large"],
)
def test_what_is_no_signature_of_it(tmp_path, content, says):
    (tmp_path / "s.sig").write_bytes(content)
    (finding,) = said(EMPTY, Rules(keys=(KEY,)), tmp_path / "s.sig")
    assert says in finding


@pytest.fixture
def force():
    yield rules.enforce
    rules.enforce(Rules())


def test_the_loader_asks_the_rules_in_force(tmp_path, force):
    refuse(EMPTY, {}, ())
    force(Rules(keys=(KEY,), signatures=tmp_path))
    with pytest.raises(ObjectError, match="it has no signature"):
        refuse(EMPTY, {}, ())
    # It may come while the agent tries again.
    signed(EMPTY, tmp_path)
    refuse(EMPTY, {}, ())
    # The signature is over the bytes that are loaded, whatever is called so.
    changed = ObjectSpec.parse(EMPTY.raw + b"\0", EMPTY.path)
    with pytest.raises(ObjectError, match="is not one of it by that key"):
        refuse(changed, {}, ())
    force(Rules(sha256=["0" * 64]))
    with pytest.raises(ObjectError, match="is not on the list"):
        refuse(EMPTY, {}, ())
    force(Rules(helpers={"xdp": ()}))
    refuse(EMPTY, {}, ())
    with pytest.raises(ObjectError, match="is not allowed in xdp"):
        refuse(COUNTER, {}, ())
    force(Rules(maps=1))
    with pytest.raises(ObjectError, match="more than 1"):
        refuse(COUNTER, {}, ())
    force(Rules())
    refuse(COUNTER, {}, ())


def test_rules_name_keys_by_themselves_or_by_file(tmp_path):
    (tmp_path / "a.pub").write_text(PEM)
    other = OTHER.public_key().public_bytes_raw()
    (tmp_path / "r.toml").write_text(f'keys = ["a.pub", "{other.hex()}"]\nsignatures = "sigs"\n')
    found = rules.read(tmp_path / "r.toml")
    assert (found.keys, found.signatures) == ((KEY, other), tmp_path / "sigs")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys = []", "keys is empty"),
        ("keys = [7]", "no list of strings"),
        ('keys = ["none.pub"]', "none.pub: No such file"),
        ('keys = ["r.toml"]', "no Ed25519 public key"),
        ("signatures = 7", "signatures is no path"),
    ],
)
def test_wrong_rules(tmp_path, text, says):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        rules.read(tmp_path / "r.toml")


def test_without_the_package_nothing_is_taken_for_signed(tmp_path, force, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    signed(EMPTY, tmp_path)
    force(Rules(keys=(KEY,), signatures=tmp_path))
    with pytest.raises(FeatureError, match=r"cryptography is missing; pip install 'mapek\[signatures\]'"):
        refuse(EMPTY, {}, ())


def test_without_a_key_the_package_is_not_imported():
    code = (
        "import sys; from mapek.bpf import *; from mapek.bpf import ObjectSpec, object_path;"
        "from mapek.bpf.validate import refuse; refuse(ObjectSpec.read(object_path('empty')), {}, ());"
        "print('cryptography' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_the_command(tmp_path, capsys):
    (tmp_path / "k.pub").write_text(PEM)
    path, key = signed(EMPTY, tmp_path), ["--key", str(tmp_path / "k.pub")]
    command = ["bpf", "validate", "empty", "--btf", "none"]
    assert main([*command, *key, "--signature", str(path)]) == 0
    assert main([*command, *key, "--signature", str(signed(COUNTER, tmp_path))]) == 1
    assert "is not one of it by that key" in capsys.readouterr().out
    assert main([*command, *key]) == 1
    assert "it has no signature" in capsys.readouterr().out
    assert main([*command, "--signature", str(path)]) == 2
    assert "no key is given" in capsys.readouterr().err
    assert main([*command, "--key", str(path)]) == 2


@pytest.mark.needs("openssl")
def test_as_the_docs_say_with_openssl(tmp_path):
    text = (Path(__file__).parents[3] / "docs/VALIDATE.md").read_text()
    lines = [line.strip() for line in text.splitlines() if line.startswith("    openssl ")]
    assert len(lines) == 3
    (tmp_path / "probe.o").write_bytes(EMPTY.raw)
    for line in lines:
        subprocess.run(
            line.replace("OBJECT.o", "probe.o").split(), cwd=tmp_path, check=True, capture_output=True
        )
    assert (
        main(
            [
                "bpf",
                "validate",
                str(tmp_path / "probe.o"),
                "--key",
                str(tmp_path / "key.pub"),
                "--btf",
                "none",
            ]
        )
        == 0
    )
