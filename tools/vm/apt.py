"""Packages of any Debian release, from the archive that apt is set up with, into a folder.

Each use has an apt root of its own, so this machine's lists and package status are never touched. What arrives
has passed apt's checks: the release file by Debian's key, the package by its hash. Nothing here names a host.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.vm.problem import Problem

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES = frozenset(
    "oldoldstable oldstable stable testing unstable bullseye bookworm trixie forky sid".split()
)
_PATIENCE_S = 600


@dataclass(frozen=True)
class Archive:
    """Where this machine gets Debian from; `security` is None where apt knows none."""

    main: str
    security: str | None

    @classmethod
    def parse(cls, targets: str) -> Archive:
        """From lines of "URI RELEASE", as `apt-get indextargets` prints them; Problem where none is Debian's."""
        pairs = [line.split() for line in targets.splitlines() if len(line.split()) == 2]
        main = [uri for uri, release in pairs if release in _RELEASES]
        security = [
            uri for uri, release in pairs if release.removesuffix("-security") in _RELEASES - {release}
        ]
        named = os.environ.get("MAPEK_DEBIAN_ARCHIVE")
        if not (named or main):
            raise Problem(
                "finding Debian's archive: apt is set up with none; set MAPEK_DEBIAN_ARCHIVE to a mirror's address"
            )
        return cls(named or main[0], security[0] if security else None)

    @classmethod
    def of_this_machine(cls) -> Archive:
        """Asked of apt itself, which knows both formats of its sources."""
        if shutil.which("apt-get") is None:
            raise Problem("finding Debian's archive: there is no apt-get here; run this on Debian")
        return cls.parse(
            _output(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        )

    def sources(self, suite: str) -> str:
        """The lines of a sources.list for one release, with its security updates where it has any."""
        lines = [f"deb [signed-by={KEYRING}] {self.main} {suite} main"]
        if self.security and suite in _RELEASES - {"sid", "unstable"}:
            lines.append(f"deb [signed-by={KEYRING}] {self.security} {suite}-security main")
        return "\n".join(lines) + "\n"


class PrivateApt:
    """An apt of its own below `root`, which is made, for some releases of Debian on amd64.

    Args:
        root: holds lists, status and sources; may be reused.
        suites: tried in this order by `update`: the first that the archive has is the one used.
    """

    def __init__(self, root: Path, archive: Archive, suites: Iterable[str]) -> None:
        self._root, self._archive, self._suites = root, archive, tuple(suites)
        for folder in ("lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        self._sources = root / "sources.list"

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::sourcelist": str(self._sources),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(self._root / "lists"),
            "Dir::State::status": str(self._root / "status"),
            "Dir::Cache": str(self._root / "cache"),
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::Languages": "none",
            "APT::Update::Error-Mode": "any",
        }
        return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def update(self) -> str:
        """Fetch the lists of the first suite that the archive offers; its name, or Problem with apt's words."""
        if not KEYRING.exists():
            raise Problem(
                f"checking Debian's signatures: {KEYRING} is missing; apt-get install debian-archive-keyring"
            )
        words = ""
        for suite in self._suites:
            lines = self._archive.sources(suite)
            # A release that is no longer supported loses its security archive before its own.
            for text in dict.fromkeys((lines, lines.splitlines()[0] + "\n")):
                self._sources.write_text(text)
                done = _run(["apt-get", *self._options(), "-qq", "update"])
                if done.returncode == 0:
                    return suite
                words = done.stderr.strip().replace("\n", "; ")
        raise Problem(f"apt-get update for {' or '.join(self._suites)}: {words}")

    def depends(self, package: str) -> list[str]:
        """Names of what the newest version of a package depends on, first alternatives; Problem if there is none."""
        done = _run(["apt-cache", *self._options(), "--no-all-versions", "show", package])
        if done.returncode:
            raise Problem(f"looking up {package}: {done.stderr.strip()}")
        for line in done.stdout.splitlines():
            if line.startswith("Depends: "):
                return [part.split("|")[0].split()[0] for part in line.removeprefix("Depends: ").split(",")]
        return []

    def download(self, package: str, folder: Path) -> None:
        """Put the package's newest version into `folder` as a .deb; Problem with apt's words."""
        done = _run(["apt-get", *self._options(), "-qq", "download", package], cwd=folder)
        if done.returncode:
            raise Problem(f"downloading {package}: {done.stderr.strip()}")


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    plain = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=plain, timeout=_PATIENCE_S
    )


def _output(command: list[str]) -> str:
    done = _run(command)
    if done.returncode:
        raise Problem(f"{' '.join(command[:2])}: {done.stderr.strip()}")
    return done.stdout


def install(packages: dict[str, str]) -> None:
    """Install what is missing of `packages` (name: the command or file by which to know it) without recommends.

    Raises Problem where that takes root, naming what is missing.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [
        name
        for name, sign in packages.items()
        if not (Path(sign).exists() if sign.startswith("/") else shutil.which(sign, path=path))
    ]
    if not missing:
        return
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise Problem(f"missing, and only root can install them: {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", flush=True)
    done = _run(command)
    if done.returncode:  # mostly lists that are old or were never fetched
        _run(["apt-get", "-qq", "update"])
        done = _run(command)
    if done.returncode:
        raise Problem(f"{' '.join(command[:2])} {' '.join(missing)}: {done.stderr.strip()}")
