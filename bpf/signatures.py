"""Detached Ed25519 signatures of objects: who made the bytes that are about to be loaded (RFC 8032, PureEdDSA).

The mathematics is the package `cryptography`, an extra of mapek that is imported only when a key is configured: about
8 MB of memory, of which an agent without keys pays nothing. `openssl pkeyutl` would do without it, but by a process
for each object, in the loop of an agent that may start none; and rolling our own is out of the question.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from mapek.bpf.regular import read_regular, reason
from mapek.errors import ConfigError, FeatureError, ObjectError

KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
SUFFIX: Final = ".sig"
_MOST: Final = 4096
# SubjectPublicKeyInfo of Ed25519 (RFC 8410) but for the key, which is its end; it has no parameters to vary.
_SPKI: Final = bytes.fromhex("302a300506032b6570032100")
_PEM: Final = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\s+([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")


def parse_key(text: str, on: str) -> bytes:
    """The 32 bytes of a public key: PEM as `openssl pkey -pubout` writes it, 64 hexadecimal digits, or base64.

    Args:
        on: what to call it in messages.

    Raises ConfigError for anything else; a private key is refused without being repeated.
    """
    if "PRIVATE KEY" in text:
        raise ConfigError("read key", on, "it is a private key", "give the public one: openssl pkey -pubout")
    if match := _PEM.fullmatch(text):
        der = _decoded("".join(match[1].split()))
        if der is not None and der.startswith(_SPKI) and len(der) == len(_SPKI) + KEY_SIZE:
            return der[len(_SPKI) :]
        raise ConfigError(
            "read key", on, "it is no Ed25519 key", "make one: openssl genpkey -algorithm ed25519"
        )
    word = text.strip()
    if re.fullmatch("[0-9a-fA-F]{64}", word):
        return bytes.fromhex(word)
    key = _decoded(word)
    if key is None or len(key) != KEY_SIZE:
        why = "it is no Ed25519 public key"
        raise ConfigError("read key", on, why, "give PEM, 64 hexadecimal digits, or base64 of 32 bytes")
    return key


def read_key(path: str | Path) -> bytes:
    """The public key in a file: as `parse_key`, or its 32 bytes as they are. Raises ConfigError."""
    try:
        data = read_regular(path, _MOST)
    except (OSError, ValueError) as error:
        raise ConfigError("read key", path, reason(error), "check the path") from error
    if len(data) == KEY_SIZE:
        return data
    return parse_key(data.decode("ascii", "replace"), str(path))


def read_signature(path: str | Path) -> bytes:
    """The 64 bytes of a signature in a file: as they are, or as base64. Raises ObjectError for anything else."""
    do = "sign it: openssl pkeyutl -sign -rawin -inkey KEY.pem -in OBJECT -out OBJECT.sig"
    try:
        data = read_regular(path, _MOST)
    except (OSError, ValueError) as error:
        raise ObjectError("read signature", path, reason(error), do) from error
    found: bytes | None = data
    if len(data) != SIGNATURE_SIZE:
        found = _decoded("".join(data.decode("ascii", "replace").split()))
    if found is None or len(found) != SIGNATURE_SIZE:
        raise ObjectError("read signature", path, f"{len(data)} bytes are no Ed25519 signature", do)
    return found


def signed_by(data: bytes, signature: bytes, keys: Collection[bytes]) -> bytes | None:
    """The one of `keys` whose owner signed `data`, or None. About 0.2 ms for each key and MB.

    Raises FeatureError where the package `cryptography` is missing.
    """
    for key in keys:
        if len(signature) == SIGNATURE_SIZE and _verifies(key, signature, data):
            return key
    return None


def _verifies(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        do = "pip install 'mapek[signatures]', or apt-get install python3-cryptography"
        raise FeatureError("check", "signatures", "the package cryptography is missing", do) from error
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _decoded(word: str) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        return None
