"""SPIFFE IDs against the rules of the SPIFFE ID standard, its own examples first."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.errors import ConfigError
from mapek.sensors.spiffe import parse

GOOD = [
    # of the standard's section 2.2
    ("spiffe://staging.example.com/payments/mysql", "staging.example.com", "/payments/mysql"),
    ("spiffe://staging.example.com/payments/web-fe", "staging.example.com", "/payments/web-fe"),
    ("spiffe://k8s-west.example.com/ns/staging/sa/default", "k8s-west.example.com", "/ns/staging/sa/default"),
    (
        "spiffe://example.com/9eebccd2-12bf-40a6-b262-65fe0487d453",
        "example.com",
        "/9eebccd2-12bf-40a6-b262-65fe0487d453",
    ),
    # a trust domain's own
    ("spiffe://example.com", "example.com", ""),
    ("spiffe://1.2.3.4/x", "1.2.3.4", "/x"),
    ("spiffe://a_b-c.d/A.b_c-9", "a_b-c.d", "/A.b_c-9"),
    ("spiffe://td/...", "td", "/..."),
    ("spiffe://td/.hidden/a..b", "td", "/.hidden/a..b"),
    ("spiffe://" + "a" * 255, "a" * 255, ""),
    ("spiffe://td/" + "p" * 2036, "td", "/" + "p" * 2036),
]

BAD = [
    ("", "begin"),
    ("example.com/x", "begin"),
    ("http://example.com/x", "begin"),
    ("SPIFFE://example.com/x", "begin"),
    ("spiffe:/example.com/x", "begin"),
    (" spiffe://example.com/x", "begin"),
    ("spiffe://", "missing"),
    ("spiffe:///path", "missing"),
    ("spiffe://Example.com/x", "lower-case"),
    ("spiffe://user@example.com/x", "lower-case"),
    ("spiffe://example.com:8080/x", "lower-case"),
    ("spiffe://example.com:/x", "lower-case"),
    ("spiffe://[fd00::1]/x", "lower-case"),
    ("spiffe://ex%61mple.com/x", "lower-case"),
    ("spiffe://exämple.com/x", "lower-case"),
    ("spiffe://example.com?q", "lower-case"),
    ("spiffe://example.com#f", "lower-case"),
    ("spiffe://example.com\n", "lower-case"),
    ("spiffe://" + "a" * 256, "255"),
    ("spiffe://example.com/", "slash"),
    ("spiffe://example.com/x/", "slash"),
    ("spiffe://example.com//x", "empty"),
    ("spiffe://example.com/x//y", "empty"),
    ("spiffe://example.com/./x", "relative"),
    ("spiffe://example.com/x/..", "relative"),
    ("spiffe://example.com/x?q=1", "letters"),
    ("spiffe://example.com/x#f", "letters"),
    ("spiffe://example.com/%61", "letters"),
    ("spiffe://example.com/a b", "letters"),
    ("spiffe://example.com/ä", "letters"),
    ("spiffe://example.com/x\n", "letters"),
    ("spiffe://example.com/²", "letters"),
    ("spiffe://td/" + "p" * 2037, "2048"),
]


@pytest.mark.parametrize(("text", "domain", "path"), GOOD)
def test_valid(text: str, domain: str, path: str):
    found = parse(text)
    assert (found.trust_domain, found.path, str(found)) == (domain, path, text)


@pytest.mark.parametrize(("text", "why"), BAD)
def test_invalid(text: str, why: str):
    with pytest.raises(ConfigError, match=why) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"
STANDARD = re.compile(rf"spiffe://[a-z0-9._-]{{1,255}}(?:/{SEGMENT})*")
"""The same rules, written another way."""


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet="aZ0./-_%:?#@ä\n", max_size=20).map(lambda rest: f"spiffe://{rest}"),
        st.from_regex(STANDARD, fullmatch=True),
    )
)
def test_anything(text: str):
    try:
        found = parse(text)
    except ConfigError:
        assert not (STANDARD.fullmatch(text) and len(text) <= 2048)
    else:
        assert STANDARD.fullmatch(text)
        assert str(found) == text
