"""Every exception of mapek; its class tells the loop what to do next.

A message is one line that says what was tried, on what, why it failed and what to do about it.
The three families carry the retry policy, so that the supervisor needs no table of special cases:
`TemporaryError` is tried again with back-off, `DegradedError` turns off or swaps the one feature
that needs what is missing, `PermanentError` is given up and said.
"""

from __future__ import annotations


class MapekError(Exception):
    """Something was tried and failed.

    Args:
        tried: the operation, as a verb phrase ("attach xdp").
        on: the object it was tried on ("wlan0").
        why: the reason, in words, ended without a full stop.
        do: what the reader can do about it; empty when there is nothing.
    """

    def __init__(self, tried: str, on: object, why: str, do: str = "") -> None:
        self.tried, self.on, self.why, self.do = tried, str(on), why, do
        super().__init__(tried, self.on, why, do)

    def __str__(self) -> str:
        head = f"{self.tried} {self.on}".strip()
        return f"{head}: {self.why}; {self.do}" if self.do else f"{head}: {self.why}"


class TemporaryError(MapekError):
    """May work later: the loop tries again, for ever, with back-off."""


class DegradedError(MapekError):
    """A feature or privilege is missing: the loop goes on without what needs it, and says so."""


class PermanentError(MapekError):
    """Will not work until somebody changes something: the loop gives it up and says so."""


class ConfigError(PermanentError):
    """A configuration or command line that cannot be meant; commands exit with 2."""


class PrivilegeError(DegradedError):
    """A capability is missing; the message names it."""


class FeatureError(DegradedError):
    """The kernel, a driver or a library lacks a feature; the message names the version that brings it."""


class ObjectError(PermanentError):
    """A BPF object is truncated, foreign, hostile or otherwise not loadable."""


class VerifierError(PermanentError):
    """The kernel's verifier rejected a program.

    The message holds the lines that matter; `log` the whole log.
    """

    def __init__(self, tried: str, on: object, why: str, do: str = "", *, log: str = "") -> None:
        super().__init__(tried, on, why, do)
        self.log = log


class AttachError(TemporaryError):
    """An interface is missing, down or held by somebody else's program."""


class NetlinkError(TemporaryError):
    """The kernel refused a netlink request; `code` is the positive errno."""

    def __init__(self, tried: str, on: object, why: str, do: str = "", *, code: int = 0) -> None:
        super().__init__(tried, on, why, do)
        self.code = code


class PluginError(PermanentError):
    """A plugin cannot be found, imported, or breaks its contract."""


class RecordingError(PermanentError):
    """A recording is damaged, foreign or of a newer form."""


class PinError(DegradedError):
    """What is pinned is not ours, or not what it was kept as: it is left alone, and so is what would replace it."""
