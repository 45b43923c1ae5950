"""The journal's file: one SQLite table in WAL mode, its size bounded, its directory locked.

SQLite rather than lines in a file, because it survives a crash at any moment and prunes in place. Only
the writer's thread uses it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from mapek.errors import PermanentError, TemporaryError
from mapek.knowledge.encoding import decode, encode_plain
from mapek.knowledge.journal import Entry, Found, OpenPlan
from mapek.model import Plan

FILE, LOCK = "journal.sqlite", "lock"
VERSION = 1

_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, boot_id TEXT NOT NULL, kind TEXT NOT NULL,
    plan_id TEXT NOT NULL, time_ns INTEGER NOT NULL, body BLOB NOT NULL,
    wall TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE INDEX plans ON entries (plan_id, run);
"""
_OPEN = """kind = 'intent' AND NOT EXISTS (
    SELECT 1 FROM entries AS answer
    WHERE answer.plan_id = entries.plan_id AND answer.run = entries.run AND answer.kind IN ('result', 'void')
)"""

_INSERT = "INSERT INTO entries (run, boot_id, kind, plan_id, time_ns, body) VALUES (?, ?, ?, ?, ?, ?)"


class Store:
    """Use it from one thread; the arguments are those of `open_journal`."""

    def __init__(self, state_dir: Path, boot_id: str, *, rows: int, megabytes: int) -> None:
        self._dir, self._boot_id, self._rows, self._pages = state_dir, boot_id, rows, megabytes * 256
        self._file = state_dir / FILE
        self._lock = -1
        self._database: sqlite3.Connection | None = None
        self._run = 0
        self._since_prune = 0

    def open(self, time_ns: int) -> Found:
        """Lock the directory, open or make the file, void what another boot left, note the start."""
        try:
            self._take_lock()
            notes = []
            try:
                database = self._connect()
                found = self._reconcile(database)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._close_database()
                notes.append(self._move_aside(error))
                database = self._connect()
                found = self._reconcile(database)
            self.write([Entry("start", "", time_ns)])
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, sqlite3.Error, TemporaryError)):
                self._give_up(error)
            raise
        return Found(found.clean, found.open, found.voided, (*notes, *found.notes))

    def write(self, entries: Iterable[Entry]) -> None:
        """Append in one transaction; raises TemporaryError if the disk refuses, with nothing written."""
        database = self._database
        if database is None:
            raise PermanentError("write to journal", self._file, "it is closed")
        rows: list[tuple[object, ...]] = [
            (e.run or self._run, self._boot_id, e.kind, e.plan_id, e.time_ns, _body(e)) for e in entries
        ]
        try:
            while not self._fits(database, rows):
                with database:
                    self._prune(database, self._number("SELECT count(*) FROM entries") // 2)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise TemporaryError(
                "write to journal",
                self._file,
                str(error),
                "free space on its disk; healing goes on without it",
            ) from error

    def _fits(self, database: sqlite3.Connection, rows: list[tuple[object, ...]]) -> bool:
        """Append `rows`; False if the file is as large as it may be and there is something old to give up."""
        try:
            with database:
                database.executemany(_INSERT, rows)
                self._since_prune += len(rows)
                if self._since_prune * 10 >= self._rows:
                    self._prune(database, self._rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL or not self._number(
                f"SELECT count(*) FROM entries WHERE NOT ({_OPEN})"
            ):
                raise
            return False
        return True

    def close(self) -> None:
        """Close the file and unlock the directory; may come twice."""
        self._close_database()
        if self._lock >= 0:
            os.close(self._lock)  # the lock goes with it; the file stays, or another agent could lock a ghost
            self._lock = -1

    def _close_database(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _take_lock(self) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._lock, 20).decode("ascii", "replace").strip()
            raise PermanentError(
                "lock state directory",
                self._dir,
                f"the agent with pid {holder or 'unknown'} uses it",
                "stop that one or set another state_dir",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _connect(self) -> sqlite3.Connection:
        database = self._database = sqlite3.connect(self._file, timeout=1, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA journal_size_limit = 1048576")
        database.execute(f"PRAGMA max_page_count = {self._pages}")
        version = self._number("PRAGMA user_version")
        if version > VERSION:
            raise PermanentError(
                "open journal",
                self._file,
                f"it has version {version}, this mapek knows {VERSION}",
                "update mapek or set another state_dir",
            )
        if version == 0:
            with database:
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION};")
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
        return database

    def _reconcile(self, database: sqlite3.Connection) -> Found:
        last = database.execute(
            "SELECT kind FROM entries WHERE kind IN ('start', 'stop') ORDER BY id DESC LIMIT 1"
        )
        row = last.fetchone()
        self._run = self._number("SELECT coalesce(max(run), 0) FROM entries") + 1
        notes, found, void = [], [], []
        query = f"SELECT id, run, boot_id, plan_id, time_ns, body FROM entries WHERE {_OPEN} ORDER BY id"
        for entry_id, run, boot, plan_id, time_ns, body in database.execute(query).fetchall():
            if boot == self._boot_id and boot:
                try:
                    found.append(OpenPlan(run, plan_id, decode(Plan, body), time_ns))
                    continue
                except ValueError as error:
                    notes.append(f"journal entry {entry_id} is not a plan that this mapek knows: {error}")
            void.append((run, boot, "void", plan_id, time_ns, b""))
        with database:
            database.executemany(_INSERT, void)
        voided = len(void) - len(notes)
        return Found(row is None or row[0] == "stop", tuple(found), voided, tuple(notes))

    def _prune(self, database: sqlite3.Connection, keep: int) -> None:
        self._since_prune = 0
        old = f"DELETE FROM entries WHERE id <= (SELECT max(id) FROM entries) - ? AND NOT ({_OPEN})"
        database.execute(old, (keep,))

    def _number(self, query: str) -> int:
        return int(self._database.execute(query).fetchone()[0]) if self._database else 0

    def _move_aside(self, error: sqlite3.Error) -> str:
        aside = self._file.with_suffix(".damaged")
        self._file.replace(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._file}{suffix}").unlink(missing_ok=True)
        why = " ".join(str(error).split())  # SQLite reports over several lines
        return f"journal {self._file} is damaged ({why}); moved to {aside} and begun anew"

    def _give_up(self, error: BaseException) -> NoReturn:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PermanentError(
            "open journal", self._file, why, "make the directory writable, set another state_dir, or none"
        ) from error


def _body(entry: Entry) -> bytes:
    try:
        return b"" if entry.body is None else encode_plain(entry.body)
    except (TypeError, ValueError) as error:  # one plugin's odd value must not cost the batch
        return encode_plain({"unwritable": str(error)})
