"""What `mapek release` keeps its hands off, which needs no kernel to be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapek.cli.release import release
from mapek.errors import PrivilegeError


def test_nothing_is_there(tmp_path: Path) -> None:
    assert release(tmp_path / "none") == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_is_not_ours_is_kept(tmp_path: Path, dry_run: bool) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "wlan0").mkdir()
    (tmp_path / "wlan0/notes").write_text("")
    (tmp_path / "wlan0/link").write_text("")
    found = release(tmp_path, dry_run=dry_run)
    assert [(one.interface, one.keep) for one in found] == [
        ("a-file", "it is no directory of ours"),
        ("wlan0", "notes in it is not ours"),
    ]
    assert (tmp_path / "wlan0/link").exists()


def test_a_plain_file_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "wlan0").mkdir()
    (tmp_path / "wlan0/link").write_text("")
    (one,) = release(tmp_path)
    assert one.keep
    assert (tmp_path / "wlan0/link").exists()


def test_what_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may read everything, so the refusal has to be made.
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PrivilegeError, match="not permitted; run as root"):
        release(tmp_path)
