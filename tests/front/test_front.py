#!/usr/bin/env python3
"""Regression of scripts/clickhouse-front: what clients of ClickHouse's HTTP interface rely on.

Run it by itself (`tests/front/test_front.py`); it enters the front's virtual environment, starts
its own servers in temporary directories and prints its totals.
"""

import base64
import contextlib
import glob
import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import zlib
from urllib.parse import urlencode

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FRONT = os.path.join(ROOT, "scripts", "clickhouse-front")
sys.path.insert(0, os.path.join(ROOT, "scripts", "lib"))

try:
    import lz4.frame
    import zstandard
    from clickhouse_front import frames, sql
except ImportError as missing:
    home = "/var/cache" if os.geteuid() == 0 else os.path.expanduser("~/.cache")
    cache = os.environ.get("WALHOUSE_CACHE") or os.path.join(home, "walhouse")
    python = os.path.join(cache, "clickhouse-front", "bin", "python")
    if sys.executable == python or not os.path.exists(python):
        sys.exit(f"load the front: {missing}. Run `scripts/servers install-front` once.")
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])

STARTUP_SECONDS = 30


class Front:
    """One clickhouse-front with a data directory that outlives its processes."""

    def __init__(self, *arguments):
        self.directory = tempfile.mkdtemp(prefix="front-")
        self.arguments = arguments
        self.start()

    def start(self):
        port_file = os.path.join(self.directory, "port")
        if os.path.exists(port_file):
            os.remove(port_file)
        self.process = subprocess.Popen(
            [sys.executable, FRONT, "--data", os.path.join(self.directory, "data"),
             "--listen", "127.0.0.1:0", "--port-file", port_file, *self.arguments],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + STARTUP_SECONDS
        while not os.path.exists(port_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the front does not come up")
            time.sleep(0.02)
        with open(port_file) as file:
            self.port = int(file.read())

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(30)

    def remove(self):
        self.kill()
        shutil.rmtree(self.directory)

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def call(self, *arguments, **params):
        """One request on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return call(connection, *arguments, **params)


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode("utf-8", "replace").rstrip("\n")

    @property
    def code(self):
        return int(self.headers.get("X-ClickHouse-Exception-Code", 0))


def call(connection, method="POST", body=b"", headers=None, path="/", **params):
    url = path + ("?" + urlencode(params) if params else "")
    connection.request(method, url, body, headers or {})
    return Answer(connection.getresponse())


class FrontCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.front = Front("--test-hooks")

    @classmethod
    def tearDownClass(cls):
        cls.front.remove()

    def setUp(self):
        self.connection = self.front.connect()
        self.addCleanup(self.connection.close)

    def ask(self, statement, **params):
        """The text of a statement's answer, which must be a success."""
        answer = call(self.connection, body=statement.encode(), **params)
        self.assertEqual(answer.status, 200, answer.text)
        return answer.text

    def native(self, statement):
        answer = call(self.connection, body=f"{statement} FORMAT Native".encode())
        self.assertEqual(answer.status, 200, answer.text)
        return answer.body

    def table(self, columns, engine="MergeTree", rest="ORDER BY tuple()"):
        name = self.id().rsplit(".", 1)[-1]
        self.ask(f"CREATE OR REPLACE TABLE {name} ({columns}) ENGINE = {engine} {rest}")
        return name

    def insert(self, statement, data, headers=None, **params):
        return call(self.connection, body=data, headers=headers, query=statement, **params)

    def count(self, table):
        return int(self.ask(f"SELECT count() FROM {table}"))


class Protocol(FrontCase):
    def test_ping_and_root_answer_ok(self):
        for path in ("/ping", "/", "/replicas_status"):
            answer = call(self.connection, "GET", path=path)
            self.assertEqual((answer.status, answer.body), (200, b"Ok.\n"))
        self.assertEqual(call(self.connection, "GET", path="/nope").status, 404)

    def test_a_query_comes_by_url_body_or_both(self):
        self.assertEqual(call(self.connection, "GET", query="SELECT 1").text, "1")
        self.assertEqual(self.ask("SELECT 2"), "2")
        self.assertEqual(self.ask("+ 2", query="SELECT 1"), "3")
        self.assertEqual(self.ask("SELECT 'ü\\''"), "ü\\'")

    def test_get_may_not_write(self):
        answer = call(self.connection, "GET", query="CREATE TABLE g (a Int8) ENGINE = Null")
        self.assertEqual(answer.code, 164)

    def test_format_is_named_in_clause_parameter_or_header(self):
        self.assertEqual(self.ask("SELECT 1 AS a", default_format="JSONEachRow"), '{"a":1}')
        self.assertEqual(self.ask("SELECT 1 AS a FORMAT CSV", default_format="JSONEachRow"), "1")
        answer = call(
            self.connection, body=b"SELECT 1 AS a", headers={"X-ClickHouse-Format": "JSONEachRow"}
        )
        self.assertEqual(answer.text, '{"a":1}')
        self.assertEqual(answer.headers["X-ClickHouse-Format"], "JSONEachRow")
        self.assertIn("json", answer.headers["Content-Type"])

    def test_headers_tell_query_id_and_summary(self):
        table = self.table("a UInt8")
        answer = self.insert(f"INSERT INTO {table} FORMAT CSV", b"1\n2\n", query_id="mine")
        self.assertEqual(answer.headers["X-ClickHouse-Query-Id"], "mine")
        summary = json.loads(answer.headers["X-ClickHouse-Summary"])
        self.assertEqual(summary["written_rows"], "2")

    def test_parameters_reach_the_query(self):
        self.assertEqual(self.ask("SELECT {x:UInt8} + 1", param_x="5"), "6")
        self.assertEqual(self.ask("SELECT {x:String} = 'a\\'b\\n'", param_x="a'b\\n"), "1")
        self.assertEqual(call(self.connection, body=b"SELECT {x:UInt8}").code, 456)

    def test_what_answers_200_did_what_it_says(self):
        """Statements that the engine, which embeds no client, takes in silence or in its way."""
        table = self.table("a Int32, b String")
        rows = b'{"x":1,"y":"one, input("}\n\n{"x":2,"y":"two"}\n'
        for head in (
            "INSERT INTO {} SELECT x, y FROM input('x Int32, y String') FORMAT JSONEachRow",
            "insert into {} (b, a) select y, x from input ( 'x Int32, y String' ) as i "
            "where i.x > 0 settings max_threads = 1 format JSONEachRow\n",
            "INSERT INTO {} (SELECT x, y AS format FROM (SELECT * FROM input('x Int32, y String')))"
            " FORMAT JSONEachRow\n",
            "INSERT INTO {} WITH i AS (SELECT * FROM input('x Int32, y String')) SELECT * FROM i"
            " FORMAT JSONEachRow ",
        ):
            self.ask(f"TRUNCATE TABLE {table}")
            self.assertEqual(self.insert(head.format(table), rows).status, 200, head)
            self.assertEqual(self.ask(f"SELECT sum(a), max(b) FROM {table}"), "3\ttwo", head)
        self.ask(f"TRUNCATE TABLE {table}")
        structure = "SELECT * FROM input('x Int32, y String')"
        for statement in (
            f"INSERT INTO {table} {structure} UNION ALL {structure} FORMAT JSONEachRow\n",
            f"INSERT INTO {table} {structure}",
            f"WITH 1 AS one INSERT INTO {table} {structure} FORMAT JSONEachRow\n",
            f"EXPLAIN {structure} FORMAT JSONEachRow\n",
            f"INSERT INTO {table} SELECT 1, 'x' FORMAT JSONEachRow\n",
            f"INSERT INTO {table} FROM INFILE '/etc/hostname' FORMAT LineAsString",
            "SELECT 1 INTO OUTFILE '/dev/null'",
        ):
            answer = self.insert(statement, rows)
            self.assertIn(answer.status, (400, 500, 501), statement)
            self.assertNotEqual(answer.code, 0, statement)
        self.assertEqual(self.ask(f"SELECT count() FROM {table}"), "0")
        self.assertEqual(self.ask("SELECT 'input(', 'INTO OUTFILE'"), "input(\tINTO OUTFILE")

    def test_a_session_keeps_what_its_statements_made(self):
        named = {"session_id": self.id()}
        answer = call(self.connection, session_check="1", body=b"SELECT 1", **named)
        self.assertEqual(answer.code, 372)
        self.ask("CREATE TEMPORARY TABLE kept (x Int32)", **named)
        self.insert("INSERT INTO kept FORMAT TSV", b"7\n", **named)
        self.ask("SET max_block_size = 77", **named)
        asked = "SELECT x, getSetting('max_block_size'), getSetting('max_threads') FROM kept"
        threads = self.ask("SELECT getSetting('max_threads')")
        # What came with a request alone is gone with it.
        self.assertEqual(self.ask(asked, max_threads="3", **named), "7\t77\t3")
        self.assertEqual(self.ask(asked, max_block_size="5", **named), f"7\t5\t{threads}")
        self.assertEqual(self.ask("SELECT currentDatabase()", database="system", **named), "system")
        self.assertEqual(self.ask(asked, **named), f"7\t77\t{threads}")
        self.assertEqual(self.ask("SELECT {p:String}", param_p="x", **named), "x")
        self.assertEqual(call(self.connection, body=b"SELECT {p:String}", **named).status, 501)
        # Another one has nothing of it, and nobody else has.
        self.assertEqual(call(self.connection, body=asked.encode(), session_id="other").code, 60)
        self.assertEqual(call(self.connection, body=asked.encode()).code, 60)
        self.ask("SELECT 1", close_session="1", param_p="", **named)
        self.assertEqual(call(self.connection, body=asked.encode(), **named).code, 60)
        self.ask("SELECT 1", session_timeout="0", session_id="short")
        answer = call(self.connection, body=b"SELECT 1", session_check="1", session_id="short")
        self.assertEqual(answer.code, 372)
        self.assertNotEqual(call(self.connection, body=b"SELECT 1", role="r").status, 200)

    def test_a_session_is_of_one_request_at_a_time(self):
        named = {"session_id": self.id()}
        answers = []
        def slow():
            # It may be the one that is refused, by a short one that came first.
            while not answers or answers[-1] != 200:
                answers.append(self.front.call(body=b"SELECT sleep(2)", **named).status)
        running = threading.Thread(target=slow)
        running.start()
        deadline = time.monotonic() + 10
        code = 0
        while code != 373 and time.monotonic() < deadline:
            code = self.front.call(body=b"SELECT 1", **named).code
        running.join()
        self.assertEqual(code, 373)

    def test_a_profile_holds_unless_the_request_says_otherwise(self):
        def profile(**params):
            self.assertEqual(call(self.connection, path="/_test/profile", **params).status, 200)

        self.addCleanup(profile)
        asked = "SELECT getSetting('max_threads'), getSetting('extremes')"
        table = self.table("a Int32")
        profile(max_threads="5", extremes="1", _constants="extremes")
        self.assertTrue(self.ask(asked).startswith("5\ttrue"))
        self.assertTrue(self.ask(asked, max_threads="2", extremes="1").startswith("2\ttrue"))
        self.assertEqual(call(self.connection, body=b"SELECT 1", extremes="0").code, 452)
        profile(readonly="1", _changeable="max_threads")
        self.assertTrue(self.ask(asked, max_threads="2").startswith("2\t"))
        self.assertEqual(call(self.connection, body=b"SELECT 1", extremes="1").code, 164)
        self.assertEqual(self.insert(f"INSERT INTO {table} FORMAT TSV", b"1\n").code, 164)
        profile(readonly="2")
        self.assertTrue(self.ask(asked, extremes="1").endswith("\ttrue"))
        profile()
        self.assertEqual(self.ask("SELECT getSetting('readonly')"), "0")
        self.assertEqual(call(self.connection, path="/_test/profile", nonsense="1").code, 115)

    def test_parameters_come_as_a_form(self):
        boundary = "a-boundary"
        parts = {"query": "SELECT {x:UInt8} * 2", "param_x": "21"}
        body = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in parts.items()
        )
        answer = call(
            self.connection,
            body=(body + f"--{boundary}--\r\n").encode(),
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        self.assertEqual(answer.text, "42")

    def test_database_is_a_parameter(self):
        self.ask("CREATE DATABASE IF NOT EXISTS other")
        self.assertEqual(self.ask("SELECT currentDatabase()", database="other"), "other")
        self.assertEqual(self.ask("SELECT currentDatabase()"), "default")
        answer = call(self.connection, body=b"SELECT 1", database="nope")
        self.assertEqual((answer.status, answer.code), (404, 81))

    def test_settings_hold_for_their_request_alone(self):
        statement = "SELECT getSetting('max_block_size')"
        before = self.ask(statement)
        self.assertEqual(self.ask(statement, max_block_size="7"), "7")
        self.assertEqual(self.ask(statement), before)
        slow = "SELECT getSetting('max_block_size') FROM (SELECT sleep(0.4))"
        seen = {}

        def one(size):
            seen[size] = self.front.call(body=slow.encode(), max_block_size=size).text

        run_all([lambda size=size: one(size) for size in ("11", "12", "13", "14")])
        self.assertEqual(seen, {size: size for size in seen})
        self.assertEqual(len(seen), 4)

    def test_settings_that_inserts_rely_on_are_known(self):
        settings = {
            "async_insert": "0",
            "wait_for_async_insert": "1",
            "type_json_skip_duplicated_paths": "1",
            "input_format_native_allow_types_conversion": "1",
            "input_format_skip_unknown_fields": "0",
            "input_format_null_as_default": "0",
            "date_time_input_format": "best_effort",
            "insert_deduplication_token": "x",
        }
        self.assertEqual(self.ask("SELECT getSetting('async_insert')", **settings), "false")

    def test_an_unknown_setting_is_refused(self):
        answer = call(self.connection, body=b"SELECT 1", nope="1")
        self.assertEqual((answer.status, answer.code), (404, 115))
        self.assertIn("Unknown setting 'nope'", answer.text)
        answer = call(self.connection, body=b"SELECT 1", **{"a b'": "1"})
        self.assertEqual(answer.code, 115)

    def test_errors_have_the_servers_status_code_and_text(self):
        expected = {
            "SELECT * FROM nope": (404, 60),
            "INSERT INTO nope FORMAT CSV\n1": (404, 60),
            "SELECT * FROM nope.t": (404, 81),
            "SELEC": (400, 62),
            "1": (400, 62),
            "SELECT 1; SELECT 2": (400, 62),
            "SELECT nope": (404, 47),
            "SELECT nope(1)": (404, 46),
            "SELECT 1 FORMAT Nope": (404, 73),
            "SELECT toUInt8('a')": (400, 6),
            "SELECT throwIf(1)": (500, 395),
            "CREATE TABLE e (a Nope) ENGINE = Null": (404, 50),
        }
        for statement, answered in expected.items():
            with self.subTest(statement):
                answer = call(self.connection, body=statement.encode())
                self.assertEqual((answer.status, answer.code), answered, answer.text)
                self.assertRegex(
                    answer.text,
                    rf"(?s)\ACode: {answer.code}\. DB::Exception: .+ \([A-Z_]+\) "
                    r"\(version [0-9.]+ \(official build\)\)\Z",
                )
                self.assertEqual(answer.text.count("DB::Exception"), 1)
                self.assertEqual(answer.text.count("(version "), 1)

    def test_a_connection_serves_on_after_errors(self):
        self.connection.connect()
        port = self.connection.sock.getsockname()[1]
        for _ in range(3):
            self.assertEqual(call(self.connection, body=b"SELEC").status, 400)
            self.assertEqual(self.ask("SELECT 1"), "1")
        self.assertEqual(self.connection.sock.getsockname()[1], port)

    def test_answers_are_compressed_as_asked(self):
        statement = b"SELECT repeat('x', 1000000) || repeat('x', 1000000) || repeat('x', 1000000)"
        expected = b"x" * 3_000_000 + b"\n"
        answer = call(self.connection, body=statement, compress="1")
        self.assertEqual(frames.decode(answer.body), expected)
        self.assertLess(len(answer.body), 100_000)
        inflate = {
            "gzip": gzip.decompress,
            "deflate": zlib.decompress,
            "lz4": lz4.frame.decompress,
            "zstd": frames.inflate_zstd,
        }
        for encoding, decompress in inflate.items():
            answer = call(self.connection, body=statement, headers={"Accept-Encoding": encoding})
            self.assertEqual(answer.headers["Content-Encoding"], encoding)
            self.assertEqual(decompress(answer.body), expected)
        off = call(
            self.connection, body=b"SELECT 1", headers={"Accept-Encoding": "gzip"},
            enable_http_compression="0",
        )  # fmt: skip
        self.assertEqual(off.body, b"1\n")

    def test_requests_of_different_connections_run_side_by_side(self):
        started = time.monotonic()
        other = threading.Thread(target=lambda: self.front.call(body=b"SELECT sleep(2)"))
        other.start()
        self.ask("SELECT 1")
        self.assertLess(time.monotonic() - started, 1.5)
        other.join()
        self.assertGreaterEqual(time.monotonic() - started, 2)

    def test_hooks_do_not_exist_unless_asked_for(self):
        self.assertEqual(Secured.server().call(path="/_test/fault").status, 404)


class Inserts(FrontCase):
    def test_any_format_goes_in(self):
        table = self.table("a UInt64, b String")
        for format in ("Native", "RowBinary", "JSONEachRow", "CSV", "TSV", "Values", "Parquet"):
            rows = f"SELECT toUInt64(number) AS a, 'x' AS b FROM numbers(10) FORMAT {format}"
            data = call(self.connection, body=rows.encode()).body
            answer = self.insert(f"INSERT INTO {table} FORMAT {format}", data)
            self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(self.ask(f"SELECT count(), sum(a) FROM {table}"), "70\t315")

    def test_statement_and_data_may_share_the_body(self):
        table = self.table("a UInt64, `b c` String")
        for statement in (
            f"INSERT INTO {table} VALUES (1, 'FORMAT ; x')",
            f"/* c */ insert into table default.\"{table}\" (a, `b c`) values (1, 'a'), (2, 'b')",
            f"INSERT INTO {table} (a) FORMAT CSV\n3\n4\n",
            f'INSERT INTO {table} SETTINGS async_insert = 0 FORMAT JSONEachRow {{"a":5}}',
            f"INSERT INTO {table} SELECT number, 'VALUES' FROM numbers(3)",
            f"INSERT INTO {table} (a) -- the rest is data\nVALUES (9);",
        ):
            self.ask(statement)
        self.assertEqual(self.insert(f"INSERT INTO {table} VALUES", b"(10, 'x')").status, 200)
        self.assertEqual(self.count(table), 11)
        self.assertEqual(
            self.ask(f"SELECT `b c` FROM {table} WHERE startsWith(`b c`, 'F')"), "FORMAT ; x"
        )

    def test_data_larger_than_the_head_follows_the_statement(self):
        table = self.table("a UInt64")
        rows = "".join(f"{n}\n" for n in range(100_000))
        self.assertGreater(len(rows), sql.HEAD_BYTES)
        self.ask(f"INSERT INTO {table} FORMAT CSV\n{rows}")
        answer = self.insert(f"INSERT INTO {table} FORMAT CSV 1", rows.encode())
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(self.ask(f"SELECT count(), sum(a) FROM {table}"), "200001\t9999900001")

    def test_native_strings_become_json_and_low_cardinality(self):
        table = self.table("a LowCardinality(String), j JSON, t DateTime64(3)")
        data = self.native(
            "SELECT 'x' AS a, '{\"k\":{\"n\":9007199254740993}}' AS j, "
            "toDateTime64('2026-01-02 03:04:05.678', 3, 'UTC') AS t"
        )
        answer = self.insert(
            f"INSERT INTO {table} (a, j, t) FORMAT Native", data,
            async_insert="0", input_format_native_allow_types_conversion="1",
        )  # fmt: skip
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(
            self.ask(f"SELECT a, j.k.n, t FROM {table}"),
            "x\t9007199254740993\t2026-01-02 03:04:05.678",
        )

    def test_duplicate_json_paths_need_their_setting(self):
        table = self.table("j JSON")
        # A column of type JSON, serialized as strings: the setting reaches no String column.
        document = b'{"a":1,"a":2}'
        data = b"\x01\x01\x01j\x04JSON" + struct.pack("<QB", 1, len(document)) + document
        statement = f"INSERT INTO {table} FORMAT Native"
        refused = self.insert(statement, data, type_json_skip_duplicated_paths="0")
        self.assertEqual(refused.code, 117, refused.text)
        taken = self.insert(statement, data, type_json_skip_duplicated_paths="1")
        self.assertEqual(taken.status, 200, taken.text)
        self.assertEqual(self.count(table), 1)

    def test_final_shows_the_highest_version(self):
        table = self.table("k UInt64, v String, n UInt64", "ReplacingMergeTree(n)", "ORDER BY k")
        for version in (2, 3, 1):
            self.ask(f"INSERT INTO {table} VALUES (1, 'v{version}', {version})")
        self.assertEqual(self.ask(f"SELECT v FROM {table} FINAL"), "v3")

    def test_a_failing_insert_leaves_nothing_and_says_why(self):
        table = self.table("a UInt64")
        good, bad = b'{"a":1}\n', b'{"a":"x"}\n'
        many = good * 2_000_000
        for data in (bad, good + bad, bad + many, many + bad):
            answer = self.insert(f"INSERT INTO {table} FORMAT JSONEachRow", data)
            self.assertEqual((answer.status, answer.code), (400, 27), answer.text)
            self.assertEqual(self.count(table), 0)
        native = self.native("SELECT toUInt64(number) AS a FROM numbers(1000)")
        for data in (native[:-1], native + native[:-1], b"garbage" * 100):
            answer = self.insert(f"INSERT INTO {table} FORMAT Native", data)
            self.assertGreaterEqual(answer.status, 400)
            self.assertNotEqual(answer.code, 0)
            self.assertEqual(self.count(table), 0)
        self.assertEqual(self.insert(f"INSERT INTO {table} FORMAT Native", native).status, 200)
        self.assertEqual(self.count(table), 1000)

    def test_what_fails_behind_the_parser_is_answered_too(self):
        table = self.table("a UInt64, CONSTRAINT small CHECK a < 10")
        answer = self.insert(f"INSERT INTO {table} FORMAT CSV", b"1\n11\n")
        self.assertEqual(answer.code, 469)
        self.assertEqual(self.count(table), 0)
        self.ask(f"DROP VIEW IF EXISTS {table}_view")
        self.ask(
            f"CREATE MATERIALIZED VIEW {table}_view ENGINE = Null AS "
            f"SELECT throwIf(a = 3) FROM {table}"
        )
        answer = self.insert(f"INSERT INTO {table} FORMAT CSV", b"3\n")
        self.assertEqual(answer.code, 395)
        table = self.table(
            "a UInt64", rest="ORDER BY a SETTINGS parts_to_throw_insert = 1, "
            "parts_to_delay_insert = 1, max_bytes_to_merge_at_max_space_in_pool = 1",
        )  # fmt: skip
        answers = [self.insert(f"INSERT INTO {table} FORMAT CSV", b"1\n") for _ in range(2)]
        self.assertEqual([answer.code for answer in answers], [0, 252])
        self.assertEqual(self.count(table), 1)

    def test_columns_left_out_take_their_defaults(self):
        table = self.table("a UInt64, b String DEFAULT concat('d', toString(a)), c UInt8")
        data = self.native("SELECT toUInt64(7) AS a")
        self.insert(f"INSERT INTO {table} (a) FORMAT Native", data)
        self.assertEqual(self.ask(f"SELECT * FROM {table}"), "7\td7\t0")
        data = self.native("SELECT toUInt64(8) AS a, 1 AS nope")
        strict = self.insert(
            f"INSERT INTO {table} (a) FORMAT Native", data, input_format_skip_unknown_fields="0"
        )
        self.assertEqual((strict.status, strict.code), (400, 117), strict.text)
        self.assertNotIn("/proc", strict.text)
        data = self.native("SELECT toUInt64(9) AS a, NULL::Nullable(UInt8) AS c")
        strict = self.insert(
            f"INSERT INTO {table} (a, c) FORMAT Native", data, input_format_null_as_default="0"
        )
        self.assertEqual(strict.code, 349, strict.text)
        self.assertEqual(self.count(table), 1)

    def test_an_insert_is_done_when_it_is_answered_async_or_not(self):
        table = self.table("a UInt64")
        for asynchronous in ("0", "1"):
            answer = self.insert(
                f"INSERT INTO {table} FORMAT CSV", b"1\n",
                async_insert=asynchronous, wait_for_async_insert="0",
                async_insert_busy_timeout_max_ms="20000", async_insert_busy_timeout_min_ms="20000",
            )  # fmt: skip
            self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(self.count(table), 2)

    def test_a_deduplication_token_is_honoured(self):
        table = self.table(
            "a UInt64", rest="ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
        )
        for token in ("one", "one", "two"):
            self.insert(
                f"INSERT INTO {table} FORMAT CSV", b"1\n",
                async_insert="0", insert_deduplication_token=token,
            )  # fmt: skip
        self.assertEqual(self.count(table), 2)


class Bodies(FrontCase):
    def setUp(self):
        super().setUp()
        self.target = self.table("a UInt64, b String")
        self.statement = f"INSERT INTO {self.target} FORMAT Native"
        self.data = self.native("SELECT toUInt64(number) AS a, toString(a) AS b FROM numbers(9999)")

    def test_the_engines_own_file_of_frames_is_read(self):
        self.ask(
            "CREATE OR REPLACE TABLE wide (a String) ENGINE = MergeTree ORDER BY a "
            "SETTINGS min_bytes_for_wide_part = 0, min_rows_for_wide_part = 0"
        )
        self.ask("INSERT INTO wide SELECT toString(number) FROM numbers(200000)")
        where = os.path.join(self.front.directory, "data", "**", "all_1_1_0", "a*.bin")
        raw = b""
        for path in glob.glob(where, recursive=True):
            with open(path, "rb") as file:
                raw += frames.decode(file.read())
        self.assertIn(b"199999", raw)

    def test_frames_of_every_method_go_in(self):
        for method in (frames.METHOD_LZ4, frames.METHOD_ZSTD, frames.METHOD_NONE):
            answer = self.insert(self.statement, frames.encode(self.data, method), decompress="1")
            self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(self.count(self.target), 3 * 9999)

    def test_a_damaged_frame_is_refused(self):
        framed = frames.encode(self.data)
        for at in (0, 30, len(framed) - 1):
            damaged = bytearray(framed)
            damaged[at] ^= 1
            answer = self.insert(self.statement, bytes(damaged), decompress="1")
            self.assertEqual((answer.status, answer.code), (500, 40), answer.text)
            self.assertIn("CHECKSUM_DOESNT_MATCH", answer.text)
        answer = self.insert(self.statement, framed[:-1], decompress="1")
        self.assertEqual(answer.code, 33)
        answer = self.insert(self.statement, self.data, decompress="1")
        self.assertGreaterEqual(answer.status, 400)
        self.assertEqual(self.count(self.target), 0)

    def test_content_encodings_go_in(self):
        encoded = {
            "gzip": gzip.compress(self.data),
            "deflate": zlib.compress(self.data),
            "zstd": zstandard.ZstdCompressor().compress(self.data),
            "lz4": lz4.frame.compress(self.data),
        }
        for encoding, body in encoded.items():
            answer = self.insert(self.statement, body, {"Content-Encoding": encoding})
            self.assertEqual(answer.status, 200, answer.text)
            torn = self.insert(
                self.statement, body[: len(body) // 2], {"Content-Encoding": encoding}
            )
            self.assertGreaterEqual(torn.status, 400, encoding)
        self.assertEqual(self.insert(self.statement, b"x", {"Content-Encoding": "x"}).status, 501)
        self.assertEqual(self.count(self.target), 4 * 9999)

    def test_a_body_comes_in_pieces(self):
        pieces = [self.data[at : at + 1000] for at in range(0, len(self.data), 1000)]
        url = "/?" + urlencode({"query": self.statement})
        self.connection.request("POST", url, iter(pieces), encode_chunked=True)
        self.assertEqual(Answer(self.connection.getresponse()).status, 200)
        self.assertEqual(self.count(self.target), 9999)

    def test_a_torn_body_inserts_nothing(self):
        whole = self.data + self.data
        half = len(self.data)
        url = "/?" + urlencode({"query": self.statement})
        head = f"POST {url} HTTP/1.1\r\nHost: x\r\n".encode()
        chunked = b"Transfer-Encoding: chunked\r\n\r\n" + f"{half:x}\r\n".encode() + self.data
        for request in (
            head + f"Content-Length: {len(whole)}\r\n\r\n".encode() + whole[:half],
            head + chunked,
            head + chunked + b"\r\n",
            head + chunked + b"\r\n0",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            with socket.create_connection(("127.0.0.1", self.front.port), 10) as client:
                client.sendall(request)
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(client.recv(1000), b"")
        self.assertEqual(self.count(self.target), 0)

    def test_data_of_a_client_that_left_without_its_answer_is_kept(self):
        url = "/?" + urlencode({"query": self.statement})
        head = f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(self.data)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.front.port), 10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
            client.sendall(head.encode() + self.data)
        deadline = time.monotonic() + 10
        while self.count(self.target) != 9999:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def test_fifty_megabytes_go_in_at_once(self):
        data = self.native(
            "SELECT toUInt64(number) AS a, repeat('x', 92) AS b FROM numbers(500000)"
        )
        self.assertGreater(len(data), 50_000_000)
        started = time.monotonic()
        answer = self.insert(self.statement, data)
        self.assertEqual(answer.status, 200, answer.text)
        rate = len(data) / 1e6 / (time.monotonic() - started)
        print(f"\n50 MB insert: {rate:.0f} MB/s", file=sys.stderr)
        self.assertEqual(self.count(self.target), 500_000)

    def test_eight_clients_insert_while_others_query(self):
        failures = []

        def write():
            connection = self.front.connect()
            for _ in range(10):
                answer = call(connection, body=self.data, query=self.statement)
                if answer.status != 200:
                    failures.append(answer.text)
            connection.close()

        def read():
            connection = self.front.connect()
            for _ in range(10):
                answer = call(connection, body=f"SELECT count() FROM {self.target}".encode())
                if answer.status != 200 or int(answer.text) % 9999:
                    failures.append(answer.text)
            connection.close()

        started = time.monotonic()
        run_all([write] * 8 + [read] * 2)
        rate = 80 / (time.monotonic() - started)
        print(f"\n8 clients: {rate:.0f} inserts/s of {len(self.data)} bytes", file=sys.stderr)
        self.assertEqual(failures, [])
        self.assertEqual(self.count(self.target), 80 * 9999)


class Hooks(FrontCase):
    def setUp(self):
        super().setUp()
        self.target = self.table("a UInt64")
        self.statement = f"INSERT INTO {self.target} FORMAT CSV"
        self.addCleanup(self.fault, clear="1")

    def fault(self, **params):
        answer = self.front.call(path="/_test/fault", **params)
        self.assertEqual(answer.status, 200, answer.text)
        return json.loads(answer.body)

    def send(self):
        """(status, code) of one insert; the connection is a new one."""
        answer = self.front.call(body=b"1\n", query=self.statement)
        return answer.status, answer.code

    def test_an_error_strikes_so_many_times(self):
        self.fault(action="error", code="252", text="Too many parts (300)", count="2")
        self.assertEqual([self.send() for _ in range(3)], [(500, 252), (500, 252), (200, 0)])
        self.assertEqual(self.count(self.target), 1)
        self.fault(action="error", code="60", table="^other$")
        self.assertEqual(self.send(), (200, 0))
        self.fault(action="error", code="60", table=f"^{self.target}$")
        self.assertEqual(self.send(), (404, 60))
        self.fault(clear="1")
        self.assertEqual(self.send(), (200, 0))

    def test_an_error_has_the_given_text(self):
        self.fault(action="error", code="252", text="Too many parts (300)")
        answer = self.insert(self.statement, b"1\n")
        self.assertRegex(
            answer.text, r"^Code: 252\. DB::Exception: Too many parts \(300\) \(TOO_MANY_PARTS\)"
        )

    def test_delays_come_before_or_after_executing(self):
        for action, seen in (("delay_before", 0), ("delay_after", 1)):
            self.ask(f"TRUNCATE TABLE {self.target}")
            self.fault(clear="1")
            self.fault(action=action, ms="1000", count="1")
            started = time.monotonic()
            sender = threading.Thread(target=self.send)
            sender.start()
            while time.monotonic() - started < 0.7:
                rows = self.count(self.target)
            self.assertEqual(rows, seen, action)
            sender.join()
            self.assertGreaterEqual(time.monotonic() - started, 1)
            self.assertEqual(self.count(self.target), 1)

    def test_a_lost_answer_leaves_the_data(self):
        self.fault(action="lose_answer", count="1")
        with self.assertRaises(ConnectionError):
            self.send()
        self.assertEqual(self.count(self.target), 1)
        self.assertEqual(self.send(), (200, 0))

    def test_a_drop_leaves_no_data(self):
        self.fault(action="drop", count="1")
        with self.assertRaises(ConnectionError):
            self.send()
        self.assertEqual(self.count(self.target), 0)

    def test_a_hang_lasts_until_cleared(self):
        self.fault(action="hang")
        ended = threading.Event()

        def hang():
            try:
                self.send()
            except ConnectionError:
                ended.set()

        hanging = threading.Thread(target=hang)
        hanging.start()
        deadline = time.monotonic() + 10
        while self.fault_report()[0]["hits"] == 0:
            self.assertLess(time.monotonic(), deadline)
        self.assertFalse(ended.wait(0.3))
        self.fault(clear="1")
        hanging.join(10)
        self.assertTrue(ended.is_set())
        self.assertEqual(self.count(self.target), 0)

    def fault_report(self):
        return json.loads(self.front.call("GET", path="/_test/fault").body)

    def test_a_page_is_none_of_clickhouse(self):
        self.fault(action="page", text="back soon", count="1")
        answer = self.insert(self.statement, b"1\n")
        self.assertEqual((answer.status, answer.body), (200, b"back soon"))
        self.assertNotIn("X-ClickHouse-Query-Id", answer.headers)
        self.fault(action="page", status="413", over="2")
        self.assertEqual(self.insert(self.statement, b"1\n1\n").status, 413)
        self.assertEqual(self.count(self.target), 0)
        self.assertEqual(self.send(), (200, 0))

    def test_queries_are_struck_only_when_asked_for(self):
        self.fault(action="error", code="159", on="query", count="1")
        self.assertEqual(self.send(), (200, 0))
        self.assertEqual(call(self.connection, body=b"SELECT 1").code, 159)
        self.assertEqual(self.ask("SELECT 1"), "1")

    def test_nonsense_is_refused(self):
        for params in (
            {"action": "nope"},
            {"action": "error"},
            {"action": "hang", "x": "1"},
            {"action": "hang", "table": "("},
            {"action": "drop", "count": "x"},
        ):
            answer = call(self.connection, path="/_test/fault", **params)
            self.assertEqual(answer.status, 400, params)
        self.assertEqual(self.fault_report(), [])


class Secured(unittest.TestCase):
    running = None

    @classmethod
    def server(cls):
        """One front with user and password, shared: it starts once."""
        if cls.running is None:
            cls.running = Front("--user", "walhouse", "--password", "s3:cret")
            unittest.addModuleCleanup(cls.running.remove)
        return cls.running

    def ask(self, headers=None, **params):
        return self.server().call(body=b"SELECT 1", headers=headers, **params)

    def basic(self, user, password):
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {encoded}"}

    def test_the_password_is_accepted_in_every_way(self):
        self.assertEqual(self.ask(self.basic("walhouse", "s3:cret")).status, 200)
        headers = {"X-ClickHouse-User": "walhouse", "X-ClickHouse-Key": "s3:cret"}
        self.assertEqual(self.ask(headers).status, 200)
        self.assertEqual(self.ask(user="walhouse", password="s3:cret").status, 200)

    def test_a_wrong_password_is_refused(self):
        for answer in (
            self.ask(self.basic("walhouse", "wrong")),
            self.ask(self.basic("other", "s3:cret")),
            self.ask({"X-ClickHouse-User": "walhouse", "X-ClickHouse-Key": "x"}),
            self.ask(user="walhouse"),
            self.ask({"Authorization": "Basic !!"}),
            self.ask(self.basic("walhouse", "s3:cret") | {"X-ClickHouse-User": "walhouse"}),
        ):
            self.assertEqual((answer.status, answer.code), (403, 516))
            self.assertIn("AUTHENTICATION_FAILED", answer.text)
            self.assertNotIn("s3:cret", answer.text)

    def test_no_password_at_all_is_asked_for(self):
        answer = self.ask()
        self.assertEqual((answer.status, answer.code), (401, 194))
        self.assertIn("Basic", answer.headers["WWW-Authenticate"])
        self.assertEqual(self.server().call("GET", path="/ping").status, 200)


class Deaths(unittest.TestCase):
    def test_what_was_answered_survives_kill_9(self):
        front = Front()
        self.addCleanup(front.remove)
        create = b"CREATE TABLE t (a UInt64, j JSON) ENGINE = ReplacingMergeTree ORDER BY a"
        self.assertEqual(front.call(body=create).status, 200)
        answered = set()
        lock = threading.Lock()

        def write(start):
            connection = front.connect()
            try:
                for key in range(start, start + 10_000):
                    row = b'{"a":%d,"j":{"k":%d}}\n' % (key, key)
                    answer = call(connection, body=row, query="INSERT INTO t FORMAT JSONEachRow")
                    if answer.status == 200:
                        with lock:
                            answered.add(key)
            except (OSError, http.client.HTTPException):
                pass  # killed
            finally:
                connection.close()

        for turn in range(3):
            before = len(answered)
            writers = [
                threading.Thread(target=write, args=((turn * 4 + n) * 10_000,)) for n in range(4)
            ]
            for writer in writers:
                writer.start()
            deadline = time.monotonic() + 20
            while len(answered) < before + 30 and time.monotonic() < deadline:
                time.sleep(0.01)
            front.kill()
            for writer in writers:
                writer.join()
            front.start()
            self.assertGreaterEqual(len(answered), before + 30)
            answer = front.call(body=b"SELECT a FROM t FINAL WHERE j.k = a")
            kept = {int(line) for line in answer.text.splitlines()}
            self.assertEqual(answered - kept, set())

    def test_sigterm_finishes_what_runs_and_ends_cleanly(self):
        front = Front("--test-hooks")
        self.addCleanup(front.remove)
        answers = []
        slow = threading.Thread(
            target=lambda: answers.append(front.call(body=b"SELECT sleep(1)").status)
        )
        idle = front.connect()
        self.addCleanup(idle.close)
        self.assertEqual(call(idle, body=b"SELECT 1").status, 200)
        slow.start()
        deadline = time.monotonic() + 10
        probe = b"SELECT count() FROM system.processes WHERE query LIKE '%sleep(1)'"
        while call(idle, body=probe).text != "1":
            self.assertLess(time.monotonic(), deadline)
        self.assertEqual(front.kill(signal.SIGTERM), 0)
        slow.join()
        self.assertEqual(answers, [200])


class Statements(unittest.TestCase):
    def test_inserts_with_data_are_told_from_others(self):
        found = sql.parse_insert(b'INSERT INTO `a``b`."t" (x, `format`) SETTINGS a=1 FORMAT CSV\n1')
        self.assertEqual((found.table, found.format), ("a`b.t", "CSV"))
        self.assertEqual(found.settings, b"SETTINGS a=1 ")
        for text in (b"SELECT 1", b"INSERT INTO t SELECT 1", b"INSERT INTO t (a) (SELECT 1)",
                     b"INSERT INTO t WITH 1 AS x SELECT x", b"INSERT INTO t FROM INFILE 'x'",
                     b"", b"INSERT", b"WITH x AS (SELECT 1) INSERT INTO t SELECT 1"):  # fmt: skip
            self.assertIsNone(sql.parse_insert(text), text)
        for text in (b"INSERT INTO values VALUES (1)", b"insert t values (1)",
                     b"INSERT INTO FUNCTION null('a Int8') VALUES (1)"):  # fmt: skip
            self.assertEqual(sql.parse_insert(text).format, "Values", text)

    def test_format_and_second_statements_are_seen_only_outside_of_strings(self):
        self.assertEqual(sql.output_format(b"SELECT 'a FORMAT b' FORMAT CSV"), "CSV")
        self.assertIsNone(sql.output_format(b"SELECT format('{}', 'x') -- FORMAT CSV"))
        self.assertIsNone(sql.second_statement_at(b"SELECT ';' /* ; */ ; -- x"))
        self.assertIsNotNone(sql.second_statement_at(b"SELECT 1; SELECT 2"))

    def test_an_unterminated_string_costs_linear_time(self):
        started = time.monotonic()
        sql.output_format(b"SELECT '" + b"a\\'" * 300_000)
        self.assertLess(time.monotonic() - started, 5)


def run_all(jobs):
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    unittest.main(verbosity=1)
