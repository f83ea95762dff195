"""The embedded ClickHouse engine: every statement runs in a session of its own, or in a named one.

A session is a fresh connection (0.15 ms), so that no setting, database or temporary table of one
request is seen by another, but for those that name a `session_id`. The engine releases Python's lock while it works: statements of
different connections run side by side.
"""

import json
import os
import re
import threading
import time

import chdb
from chdb import _chdb

from . import sql

CODE = re.compile(r"Code: (\d+)\. DB::(?:Net)?Exception: ")
VERSION_TAIL = re.compile(r"\s*\(version [^()]*(?:\([^()]*\))?\)\.?\s*\Z")
NAME_TAIL = re.compile(r"\s*\(([A-Z][A-Z0-9_]+)\)\.?\s*\Z")
SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")

# What the detour through a file (see `Session.insert`) adds to messages.
INFILE_TRACES = re.compile(
    r":? \(in file/uri [^)]*\)|: While executing File(?:: data for INSERT was parsed from file)?"
)


class EngineError(Exception):
    """What the engine answers instead of a result: code, name, and the text as a server has it."""

    codes = {"STD_EXCEPTION": 1001}
    names = {1001: "STD_EXCEPTION"}
    version = "unknown"

    def __init__(self, code, name, message):
        self.code = code
        self.name = name
        self.text = (
            f"Code: {code}. DB::Exception: {message} ({name}) "
            f"(version {self.version} (official build))\n"
        )
        super().__init__(self.text)

    @classmethod
    def named(cls, name, message):
        """An error that the front finds itself."""
        return cls(cls.codes.get(name, 1001), name, message)

    @classmethod
    def from_exception(cls, error):
        """Undoes the embedded engine's nesting: it repeats code, name and version per layer."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, UnicodeDecodeError) and isinstance(error.object, bytes):
            text = error.object.decode("utf-8", "replace")
        else:
            text = str(error)
        found = CODE.search(text)
        if not found:
            return cls(1001, "STD_EXCEPTION", text)
        code = int(found.group(1))
        message = INFILE_TRACES.sub("", text[found.end() :])
        while nested := CODE.match(message):
            message = message[nested.end() :]
        while True:
            shorter = VERSION_TAIL.sub("", message)
            tail = NAME_TAIL.search(shorter)
            if tail and tail.group(1) in cls.codes:
                shorter = shorter[: tail.start()]
            if shorter == message:
                break
            message = shorter
        return cls(code, cls.names.get(code, "UNKNOWN_EXCEPTION"), message)


class Outcome:
    """Bytes of the answer and the numbers of the summary header."""

    def __init__(self, body=b"", **summary):
        self.body = body
        self.summary = summary


class Engine:
    def __init__(self, path, config=None):
        # Signals belong to the program that embeds the engine.
        _chdb.set_signal_handlers_enabled(0)
        # Every connection has to say the same.
        self.path = f"{path}?config-file={config}" if config else path
        # Kept open: the engine lives as long as one connection does.
        self.keeper = chdb.connect(self.path)
        EngineError.version = self._rows("SELECT version()")[0][0]
        numbered = self._rows(
            "SELECT number, errorCodeToName(toInt32(number)) FROM numbers(1, 1100)"
            " WHERE errorCodeToName(toInt32(number)) != ''"
        )
        EngineError.names = {int(code): name for code, name in numbered}
        EngineError.codes = {name: int(code) for code, name in numbered}
        formats = self._rows("SELECT name, content_type FROM system.formats")
        self.formats = {name.lower(): name for name, _ in formats}
        self.content_types = {name: content for name, content in formats if content}
        self.timezone = self._rows("SELECT timezone()")[0][0]
        self.kept = KeptSessions(self.path)

    def _rows(self, statement):
        text = self.keeper.query(statement, "TabSeparatedRaw").bytes().decode()
        return [line.split("\t") for line in text.splitlines()]

    def session(self, database, settings, parameters, profile, kept=None):
        return Session(self.path, database, settings, parameters, profile, kept)

    def close(self):
        self.kept.close()
        self.keeper.close()


class Profile:
    """What a user's settings profile has on a server, which the embedded engine has not.

    `settings` hold unless the request says otherwise. Of `constants` a request may not change the
    value. `changeable` may be changed although the profile is `readonly`.
    """

    def __init__(self, settings=None, constants=(), changeable=()):
        self.settings = settings or {}
        self.constants = frozenset(constants)
        self.changeable = frozenset(changeable)


class KeptSessions:
    """Connections that outlive their request, by `session_id`."""

    def __init__(self, path):
        self.path = path
        self.lock = threading.Lock()
        self.kept = {}

    def take(self, name, must_exist):
        """The session, which is the caller's until it gives it back."""
        with self.lock:
            now = time.monotonic()
            for old in [n for n, k in self.kept.items() if not k.busy and k.expires < now]:
                self.kept.pop(old).connection.close()
            kept = self.kept.get(name)
            if kept is None:
                if must_exist:
                    raise EngineError.named("SESSION_NOT_FOUND", f"Session {name} not found")
                kept = self.kept[name] = KeptSession(chdb.connect(self.path))
            elif kept.busy:
                raise EngineError.named(
                    "SESSION_IS_LOCKED", f"Session {name} is locked by a concurrent client"
                )
            kept.busy = True
            return kept

    def give_back(self, name, timeout, close):
        with self.lock:
            kept = self.kept[name]
            kept.busy = False
            kept.expires = time.monotonic() + timeout
            if close:
                self.kept.pop(name).connection.close()

    def close(self):
        with self.lock:
            for kept in self.kept.values():
                kept.connection.close()
            self.kept = {}


class KeptSession:
    def __init__(self, connection):
        self.connection = connection
        self.busy = False
        self.expires = 0.0
        # The engine keeps parameters; a server has those of the request alone.
        self.parameters = set()


class Session:
    """One statement's connection, with its settings in place; use it as a context manager.

    The connection of a `kept` session is left as the statement made it: what came with the request
    alone is undone.
    """

    def __init__(self, path, database, settings, parameters, profile, kept=None):
        self.kept = kept
        self.connection = kept.connection if kept else chdb.connect(path)
        self.undo = []
        try:
            for name in (*settings, *parameters):
                if not SETTING_NAME.match(name):
                    raise EngineError.named("UNKNOWN_SETTING", f"Unknown setting '{name}'.")
            if kept:
                self.remember(settings, bool(database))
                kept.parameters.update(parameters)
            if database:
                self.query(f"USE {sql.identifier(database)}".encode(), "Null")
            # The embedded engine's session default, unlike a server's: `1` would be a query.
            self.set({"implicit_select": "0"})
            # `readonly` last: it forbids changing the others.
            self.set({n: v for n, v in profile.settings.items() if n != "readonly"})
            self.set({n: v for n, v in settings.items() if n in profile.changeable})
            if "readonly" in profile.settings:
                self.set({"readonly": profile.settings["readonly"]})
            constants = {name: self.value(name) for name in profile.constants & set(settings)}
            rest = {n: v for n, v in settings.items() if n not in profile.changeable}
            self.set({n: v for n, v in rest.items() if n != "readonly"})
            for name, value in constants.items():
                if self.value(name) != value:
                    raise EngineError.named(
                        "SETTING_CONSTRAINT_VIOLATION", f"Setting {name} should not be changed"
                    )
            if "readonly" in rest:
                self.set({"readonly": rest["readonly"]})
            self.set({f"param_{name}": value for name, value in parameters.items()})
        except BaseException:
            self.__exit__()
            raise

    def set(self, settings):
        if settings:
            changes = [f"{name}={sql.literal(value)}" for name, value in settings.items()]
            self.query(("SET " + ", ".join(changes)).encode(), "Null")

    def value(self, name):
        rows = self.query(f"SELECT getSetting({sql.literal(name)})".encode(), "TabSeparatedRaw")
        return rows.body.decode().rstrip("\n")

    def remember(self, settings, database):
        """How the session is, so that the request's own settings hold for it alone."""
        names = ", ".join(sql.literal(name) for name in settings)
        if names:
            asked = f"SELECT name, value, changed FROM system.settings WHERE name IN ({names})"
            for line in self.query(asked.encode(), "JSONCompactEachRow").body.splitlines():
                name, value, changed = json.loads(line)
                self.undo.append(f"SET {name}={sql.literal(value) if changed else 'DEFAULT'}")
        if database:
            rows = self.query(b"SELECT currentDatabase()", "TabSeparatedRaw").body
            self.undo.append(f"USE {sql.identifier(rows.decode().rstrip())}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.kept:
            self.connection.close()
            return
        for statement in self.undo:
            self.query(statement.encode(), "Null")

    def query(self, statement, format):
        try:
            result = self.connection.query(statement, format)
        except Exception as error:
            raise EngineError.from_exception(error) from None
        return Outcome(
            result.bytes(),
            read_rows=result.storage_rows_read(),
            read_bytes=result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            result_rows=result.rows_read(),
            result_bytes=result.bytes_read(),
            elapsed_ns=int(result.elapsed() * 1e9),
        )

    def insert(self, insert, pieces):
        """Runs an INSERT over the data in `pieces`.

        Through FROM INFILE and not the binding's streaming insert: that one (chdb 4.4) swallows
        whatever fails behind the parser (constraints, views, too many parts), and data inside the
        statement is cut at blank lines.
        """
        with BodyFile(pieces) as path:
            # The line breaks keep a comment at the end of a part from hiding the next.
            if insert.input:
                begins, structure, ends = insert.input
                # What `input` is for a server: the same data as a table function.
                file = f"file({sql.literal(path)}, {sql.literal(insert.format)}, ".encode()
                parts = (
                    insert.head[:begins] + file + insert.head[structure : ends - 1] + b"\n",
                    b", 'none')" + insert.head[ends:],
                )
            else:
                parts = (
                    insert.head + b"\n",
                    f"FROM INFILE {sql.literal(path)} COMPRESSION 'none'".encode(),
                    insert.settings + b"\n",
                    b"FORMAT " + sql.identifier(insert.format).encode(),
                )
            outcome = self.query(b" ".join(parts), "Null")
        written = outcome.summary
        written["read_rows"] = written["written_rows"]
        written["read_bytes"] = written["written_bytes"]
        return outcome


class BodyFile:
    """An INSERT's body where the engine can read it; gone with the process, however that ends."""

    def __init__(self, pieces):
        self.file = open(os.memfd_create("insert"), "wb", buffering=0)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[self.file.write(view) :]
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        return f"/proc/self/fd/{self.file.fileno()}"

    def __exit__(self, *_):
        self.file.close()
