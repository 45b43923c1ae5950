"""SPIFFE IDs: `spiffe://trust-domain/path`, checked as the SPIFFE ID standard says, character by character.

Stricter than a URI parser on purpose: two spellings of one identity would be two identities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mapek.config.options import plain
from mapek.errors import ConfigError

SCHEME: Final = "spiffe://"
MAX_BYTES: Final = 2048
MAX_TRUST_DOMAIN: Final = 255
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A valid SPIFFE ID: `path` is "" or begins with a slash."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def parse(text: str) -> SpiffeId:
    """The SPIFFE ID that `text` is. Raises ConfigError for whatever the standard forbids.

    >>> parse("spiffe://example.org/node/b").trust_domain
    'example.org'
    >>> parse("spiffe://example.org/node//b")
    Traceback (most recent call last):
    mapek.errors.ConfigError: read SPIFFE ID spiffe://example.org/node//b: a path segment is empty; \
write spiffe://trust-domain/path
    """
    if why := _fault(text):
        raise ConfigError("read SPIFFE ID", plain(text), why, f"write {SCHEME}trust-domain/path")
    domain, slash, rest = text.removeprefix(SCHEME).partition("/")
    return SpiffeId(domain, slash + rest)


def _fault(text: str) -> str:
    if not text.startswith(SCHEME):
        return f'it does not begin with "{SCHEME}"'
    if len(text) > MAX_BYTES:  # what passes the checks below is ASCII, a byte a character
        return f"it is longer than {MAX_BYTES} bytes"
    domain, slash, path = text.removeprefix(SCHEME).partition("/")
    if not domain:
        return "the trust domain is missing"
    if len(domain) > MAX_TRUST_DOMAIN:
        return f"the trust domain is longer than {MAX_TRUST_DOMAIN} bytes"
    if not _TRUST_DOMAIN.fullmatch(domain):
        return "a trust domain has lower-case letters, digits, dots, dashes and underscores only"
    for segment in path.split("/") if slash else ():
        if not segment:
            return "it ends with a slash" if path.endswith("/") or not path else "a path segment is empty"
        if segment in (".", ".."):
            return "a path segment is a relative one"
        if not _SEGMENT.fullmatch(segment):
            return "a path segment has letters, digits, dots, dashes and underscores only"
    return ""
