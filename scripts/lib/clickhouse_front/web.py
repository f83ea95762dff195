"""Speaks HTTP/1.1 as ClickHouse does: parameters, authentication, bodies, answers, status codes.

A body is read to its end before anything runs. So a client that dies in the middle of an INSERT
inserts nothing, and a client that does not read its answer loses only the answer.
"""

import base64
import contextlib
import email.parser
import email.policy
import hmac
import http.server
import json
import socket
import socketserver
import struct
import sys
import threading
import time
import urllib.parse
import uuid

from . import frames, sql
from .engine import EngineError, Outcome, Profile

# The server's keep_alive_timeout and receive_timeout.
IDLE_SECONDS = 10
RECEIVE_SECONDS = 300
BODY_BYTES_MAX = 2 * 1024**3
LINE_BYTES_MAX = 64 * 1024

# What the URL may hold beside settings, and the front understands or may ignore.
RESERVED = {
    "query", "database", "default_format", "user", "password", "quota_key", "compress",
    "decompress", "query_id", "buffer_size", "wait_end_of_query", "stacktrace",
    "client_protocol_version", "session_id", "session_timeout", "session_check", "close_session",
}  # fmt: skip
UNSUPPORTED = {"role"}
SESSION_SECONDS, SESSION_SECONDS_MAX = 60, 3600

STATUS_BY_NAME = {
    "REQUIRED_PASSWORD": 401,
    **dict.fromkeys(
        ("UNKNOWN_USER", "WRONG_PASSWORD", "AUTHENTICATION_FAILED", "SET_NON_GRANTED_ROLE",
         "ACCESS_DENIED"), 403),
    **dict.fromkeys(
        ("BAD_ARGUMENTS", "CANNOT_COMPILE_REGEXP", "CANNOT_PARSE_TEXT",
         "CANNOT_PARSE_ESCAPE_SEQUENCE", "CANNOT_PARSE_QUOTED_STRING", "CANNOT_PARSE_DATE",
         "CANNOT_PARSE_DATETIME", "CANNOT_PARSE_NUMBER", "CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING",
         "CANNOT_PARSE_IPV4", "CANNOT_PARSE_IPV6", "CANNOT_PARSE_UUID",
         "CANNOT_PARSE_INPUT_ASSERTION_FAILED", "DUPLICATE_COLUMN", "ILLEGAL_COLUMN",
         "THERE_IS_NO_COLUMN", "UNKNOWN_ELEMENT_IN_AST", "UNKNOWN_TYPE_OF_AST_NODE",
         "TOO_DEEP_AST", "TOO_BIG_AST", "UNEXPECTED_AST_STRUCTURE", "SYNTAX_ERROR",
         "INCORRECT_DATA", "TYPE_MISMATCH", "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"), 400),
    **dict.fromkeys(
        ("UNKNOWN_TABLE", "UNKNOWN_FUNCTION", "UNKNOWN_IDENTIFIER", "UNKNOWN_TYPE",
         "UNKNOWN_STORAGE", "UNKNOWN_DATABASE", "UNKNOWN_SETTING", "UNKNOWN_DIRECTION_OF_SORTING",
         "UNKNOWN_AGGREGATE_FUNCTION", "UNKNOWN_FORMAT", "UNKNOWN_DATABASE_ENGINE",
         "UNKNOWN_TYPE_OF_QUERY", "UNKNOWN_ROLE"), 404),
    "TIMEOUT_EXCEEDED": 408,
    "HTTP_LENGTH_REQUIRED": 411,
    "QUERY_IS_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "NOT_IMPLEMENTED": 501,
    **dict.fromkeys(("SOCKET_TIMEOUT", "CANNOT_OPEN_FILE", "CANNOT_SCHEDULE_TASK"), 503),
}  # fmt: skip


class Torn(Exception):
    """The request's body broke off, or is no HTTP: nothing runs and the connection is closed."""


class NoAnswer(Exception):
    """A fault of a test: the connection is closed without an answer."""


class Page(Exception):
    """A fault of a test: somebody else has answered, with this status and text."""


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address, engine, user, password, faults, verbose):
        self.engine = engine
        self.user = user
        self.password = password
        self.faults = faults
        self.profile = Profile()
        self.verbose = verbose
        self.changed = threading.Condition()
        self.running = 0
        self.connections = set()
        super().__init__(address, Handler)

    def handle_error(self, request, client_address):
        # A connection that breaks is the client's business; a bug of ours is ours.
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def drain(self, seconds):
        """Ends idle connections, waits for running requests; tells whether all have ended."""
        deadline = time.monotonic() + seconds
        if self.faults:
            self.faults.clear()
        with self.changed:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RD)
                except OSError:
                    pass  # It has just ended by itself.
            return self.changed.wait_for(
                lambda: self.running == 0, max(0.0, deadline - time.monotonic())
            )


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "ClickHouse"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self):
        super().setup()
        with self.server.changed:
            self.server.connections.add(self.connection)

    def finish(self):
        with self.server.changed:
            self.server.connections.discard(self.connection)
        super().finish()

    def handle_one_request(self):
        self.connection.settimeout(IDLE_SECONDS)
        super().handle_one_request()

    def log_message(self, format, *args):
        if self.server.verbose:
            # The path without its parameters: they may hold a password or rows.
            line = urllib.parse.urlsplit(getattr(self, "path", "-")).path
            print(f"{getattr(self, 'command', '-')} {line} {args}", file=sys.stderr)

    def do_GET(self):
        self.serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def serve(self):
        with self.server.changed:
            self.server.running += 1
        try:
            self.answer()
        except Torn:
            self.close_connection = True
        except NoAnswer:
            self.close_connection = True
            # A reset, not an orderly end: what a crashed server looks like.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        finally:
            with self.server.changed:
                self.server.running -= 1
                self.server.changed.notify_all()

    def answer(self):
        self.connection.settimeout(RECEIVE_SECONDS)
        url = urllib.parse.urlsplit(self.path)
        self.params = dict(
            urllib.parse.parse_qsl(
                url.query, keep_blank_values=True, errors="surrogateescape", max_num_fields=10_000
            )
        )
        self.query_id = self.params.get("query_id") or str(uuid.uuid4())
        self.format = "TabSeparated"
        try:
            body = self.read_body()
            if self.server.faults is not None and url.path == "/_test/fault":
                return self.serve_fault()
            if self.server.faults is not None and url.path == "/_test/profile":
                return self.serve_profile()
            if url.path in ("/ping", "/replicas_status"):
                return self.send(200, Outcome(b"Ok.\n"), "text/html; charset=UTF-8")
            if url.path != "/":
                return self.send(
                    404,
                    Outcome(f"There is no handle {url.path}\n".encode()),
                    "text/plain; charset=UTF-8",
                )
            self.authenticate()
            outcome = self.run(body)
            if outcome is None:
                return self.send(200, Outcome(b"Ok.\n"), "text/html; charset=UTF-8")
            content_type = self.server.engine.content_types.get(
                self.format, "text/plain; charset=UTF-8"
            )
            self.send(200, outcome, content_type)
        except Page as page:
            status, text = page.args
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            self.wfile.flush()
        except EngineError as error:
            self.send_failure(error)

    # Bodies

    def read_body(self):
        encoding = self.headers.get("Transfer-Encoding", "").lower()
        if encoding == "chunked":
            body = self.read_chunked()
        elif encoding not in ("", "identity"):
            raise Torn
        elif "Content-Length" in self.headers:
            try:
                length = int(self.headers["Content-Length"])
            except ValueError:
                raise Torn from None
            body = self.read_exactly(length)
        elif self.command in ("POST", "PUT"):
            self.close_connection = True
            raise EngineError.named(
                "HTTP_LENGTH_REQUIRED",
                "The Transfer-Encoding is not chunked and there is no Content-Length header "
                "for POST request",
            )
        else:
            body = b""
        return frames.decode_content(self.headers.get("Content-Encoding", "").lower(), body)

    def read_exactly(self, length):
        if length < 0 or length > BODY_BYTES_MAX:
            raise Torn
        data = self.rfile.read(length)
        if len(data) != length:
            raise Torn
        return data

    def read_line(self):
        line = self.rfile.readline(LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise Torn
        return line.strip()

    def read_chunked(self):
        parts = []
        total = 0
        while True:
            try:
                length = int(self.read_line().split(b";")[0], 16)
            except ValueError:
                raise Torn from None
            total += length
            if total > BODY_BYTES_MAX:
                raise Torn
            if length == 0:
                while self.read_line():
                    pass  # trailers
                return b"".join(parts)
            parts.append(self.read_exactly(length))
            if self.read_line() != b"":
                raise Torn

    # Statements

    def authenticate(self):
        user = self.headers.get("X-ClickHouse-User")
        password = self.headers.get("X-ClickHouse-Key")
        basic = self.headers.get("Authorization", "")
        in_url = "user" in self.params or "password" in self.params
        if user is not None or password is not None:
            if basic or in_url:
                raise EngineError.named(
                    "AUTHENTICATION_FAILED",
                    "Invalid authentication: it is not allowed to use X-ClickHouse HTTP headers "
                    "and other authentication methods simultaneously",
                )
        elif basic:
            try:
                scheme, encoded = basic.split(None, 1)
                if scheme.lower() != "basic":
                    raise ValueError(scheme)
                user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
            except ValueError:
                raise EngineError.named(
                    "AUTHENTICATION_FAILED", "Invalid authentication: not a Basic header"
                ) from None
        else:
            user, password = self.params.get("user"), self.params.get("password")
        user, password = user or "default", password or ""
        expected = (self.server.password or "").encode()
        given = password.encode("utf-8", "surrogateescape")
        if user == self.server.user and hmac.compare_digest(given, expected):
            return
        raise EngineError.named(
            "REQUIRED_PASSWORD" if user == "default" and not password else "AUTHENTICATION_FAILED",
            f"{user}: Authentication failed: password is incorrect, or there is no user with such "
            "name.",
        )

    def run(self, body):
        """The outcome of the request's statement, or None when it has none."""
        params = dict(self.params)
        content_type = self.headers.get("Content-Type", "")
        if content_type.lower().startswith("multipart/form-data"):
            fields = multipart_fields(content_type, body)
            body = fields.pop("query", b"")
            params.update({name: text(value) for name, value in fields.items()})
        if params.get("decompress") in ("1", "true"):
            body = frames.decode(body)
        statement = raw(params.get("query", ""))
        if not statement and not body:
            if self.command in ("GET", "HEAD"):
                return None
            raise EngineError.named("SYNTAX_ERROR", "Syntax error: Empty query")
        settings, parameters = {}, {}
        for name, value in params.items():
            if name in UNSUPPORTED:
                raise EngineError.named(
                    "NOT_IMPLEMENTED", f"the front for tests does not support `{name}`"
                )
            if name.startswith("param_"):
                parameters[name[len("param_") :]] = value
            elif name not in RESERVED:
                settings[name] = value
        if self.command in ("GET", "HEAD") and settings.get("readonly", "0") == "0":
            settings["readonly"] = "2"

        head = statement + b"\n" + body[: sql.HEAD_BYTES] if statement else body[: sql.HEAD_BYTES]
        insert = sql.parse_insert(head)
        faults, cleared = {}, None
        if self.server.faults is not None:
            faults, cleared = self.server.faults.take(
                insert is not None, insert.table if insert else "", len(body)
            )
        self.strike_before(faults, cleared)
        database = params.get("database") or self.headers.get("X-ClickHouse-Database", "")
        with self.session(params, database, settings, parameters) as session:
            if insert:
                start = insert.data_at - (len(statement) + 1 if statement else 0)
                pieces = [memoryview(body)[start:]] if start >= 0 else [head[insert.data_at :]]
                if start < 0:
                    pieces.append(memoryview(body)[sql.HEAD_BYTES :])
                outcome = session.insert(insert, pieces)
            else:
                outcome = self.run_query(session, statement, body, params)
        self.strike_after(faults, cleared)
        return outcome

    @contextlib.contextmanager
    def session(self, params, database, settings, parameters):
        """The session that the statement runs in: its own, or the one that it names."""
        engine, profile = self.server.engine, self.server.profile
        name = params.get("session_id", "")
        if not name:
            with engine.session(database, settings, parameters, profile) as session:
                yield session
            return
        if self.command in ("GET", "HEAD") or "readonly" in {**settings, **profile.settings}:
            raise EngineError.named(
                "NOT_IMPLEMENTED", "the front for tests has no readonly requests in a session"
            )
        try:
            timeout = int(params.get("session_timeout", SESSION_SECONDS))
        except ValueError:
            timeout = -1
        if not 0 <= timeout <= SESSION_SECONDS_MAX:
            raise EngineError.named(
                "INVALID_SESSION_TIMEOUT", f"Invalid session timeout: '{params['session_timeout']}'"
            )
        # Of another user is another session, as on a server.
        name = (self.server.user, name)
        kept = engine.kept.take(name, params.get("session_check") == "1")
        try:
            for left in kept.parameters - set(parameters):
                raise EngineError.named(
                    "NOT_IMPLEMENTED",
                    f"the front for tests cannot take back `param_{left}` in a session: send it",
                )
            with engine.session(database, settings, parameters, profile, kept) as session:
                yield session
        finally:
            engine.kept.give_back(name, timeout, params.get("close_session") == "1")

    def run_query(self, session, statement, body, params):
        whole = statement + b"\n" + body if statement else body
        second = sql.second_statement_at(whole)
        if second is not None:
            raise EngineError.named(
                "SYNTAX_ERROR",
                f"Syntax error (Multi-statements are not allowed): failed at position {second + 1}",
            )
        if foreign := sql.not_for_a_server(whole):
            raise EngineError.named(
                "NOT_IMPLEMENTED", f"the front for tests does not support {foreign}"
            )
        default = params.get("default_format") or self.headers.get("X-ClickHouse-Format")
        default = default or "TabSeparated"
        named = sql.output_format(whole) or default
        self.format = self.server.engine.formats.get(named.lower(), named)
        return session.query(whole, default)

    # Faults

    def strike_before(self, faults, cleared):
        if fault := faults.get("delay_before"):
            cleared.wait(fault.ms / 1000)
        if "hang" in faults:
            cleared.wait()
            raise NoAnswer
        if "drop" in faults:
            raise NoAnswer
        if fault := faults.get("page"):
            raise Page(fault.status, fault.text.encode())
        if fault := faults.get("error"):
            name = EngineError.names.get(fault.code, "UNKNOWN_EXCEPTION")
            raise EngineError(fault.code, name, fault.text)

    def strike_after(self, faults, cleared):
        if fault := faults.get("delay_after"):
            cleared.wait(fault.ms / 1000)
        if "lose_answer" in faults:
            raise NoAnswer

    def serve_fault(self):
        faults = self.server.faults
        try:
            if self.params.get("clear"):
                faults.clear()
            elif self.command == "POST":
                faults.add(self.params)
        except ValueError as error:
            return self.send(400, Outcome(f"{error}\n".encode()), "text/plain; charset=UTF-8")
        report = json.dumps(faults.report()).encode() + b"\n"
        self.send(200, Outcome(report), "application/json; charset=UTF-8")

    def serve_profile(self):
        """The user's settings profile from now on: NAME=VALUE each; nothing at all clears it."""
        settings = dict(self.params)
        names = lambda key: filter(None, settings.pop(key, "").split(","))
        constants, changeable = list(names("_constants")), list(names("_changeable"))
        profile = Profile(settings, constants, changeable)
        # What the engine does not take is not in any profile.
        with self.server.engine.session("", {}, {}, profile):
            self.server.profile = profile
        self.send(200, Outcome(b""), "text/plain; charset=UTF-8")

    # Answers

    def send_failure(self, error):
        status = STATUS_BY_NAME.get(error.name, 500)
        extra = {"X-ClickHouse-Exception-Code": str(error.code)}
        if status == 401:
            extra["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        outcome = Outcome(error.text.encode("utf-8", "replace"))
        self.send(status, outcome, "text/plain; charset=UTF-8", extra)

    def send(self, status, outcome, content_type, extra=None):
        headers = dict(extra or {})
        body = outcome.body
        if status == 200 and self.params.get("compress") in ("1", "true"):
            body = frames.encode(body)
        elif self.params.get("enable_http_compression", "1") in ("1", "true"):
            if encoding := frames.choose_encoding(self.headers.get("Accept-Encoding", "")):
                body = frames.encode_content(encoding, body)
                headers["Content-Encoding"] = encoding
        self.send_response(status)
        self.send_header("Connection", "close" if self.close_connection else "Keep-Alive")
        if not self.close_connection:
            self.send_header("Keep-Alive", f"timeout={IDLE_SECONDS}")
        self.send_header("Content-Type", content_type)
        self.send_header("X-ClickHouse-Server-Display-Name", "clickhouse-front")
        self.send_header("X-ClickHouse-Query-Id", self.query_id.encode("ascii", "replace").decode())
        if status == 200:
            self.send_header("X-ClickHouse-Format", self.format)
        self.send_header("X-ClickHouse-Timezone", self.server.engine.timezone)
        summary = {name: str(value) for name, value in outcome.summary.items()}
        self.send_header("X-ClickHouse-Summary", json.dumps(summary, separators=(",", ":")))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


def raw(value):
    return value.encode("utf-8", "surrogateescape")


def text(value):
    return value.decode("utf-8", "surrogateescape")


def multipart_fields(content_type, body):
    """The fields of a form: `query` and `param_...`, as clients send them with parameters."""
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    if not message.is_multipart():
        raise EngineError.named("BAD_ARGUMENTS", "the body is no multipart form")
    fields = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if not name:
            raise EngineError.named("BAD_ARGUMENTS", "a part of the form has no name")
        fields[name] = part.get_payload(decode=True) or b""
    return fields
