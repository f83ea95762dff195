"""Finds out just enough about a statement: is it an INSERT with data, where does the data begin,
which format does it name, is it one statement or several.

It deliberately is no parser: whatever it does not recognise goes to the engine as it came.
"""

import re

# Linear even on nonsense: the bodies of strings are unrolled, and one that does not end takes all.
TOKEN = re.compile(
    rb"""
      (?P<space>[\s\x00]+)
    | (?P<comment>--[^\n]*|\#[\ !][^\n]*|/\*.*?\*/)
    | (?P<string>'[^'\\]*(?:(?:\\.|'')[^'\\]*)*')
    | (?P<quoted>`[^`\\]*(?:(?:\\.|``)[^`\\]*)*`|"[^"\\]*(?:(?:\\.|"")[^"\\]*)*")
    | (?P<heredoc>(?P<tag>\$\w*\$).*?(?P=tag))
    | (?P<unterminated>['"`].*|/\*.*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_$]*)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

# An INSERT's head (names, columns, settings) is looked for in this much of the statement.
HEAD_BYTES = 256 * 1024


class Insert:
    """An INSERT whose data follows the statement: `head`, `settings`, FORMAT and the data."""

    def __init__(self, head, settings, table, format, data_at):
        self.head = head
        self.settings = settings
        self.table = table
        self.format = format
        self.data_at = data_at


def tokens(text):
    """(kind, bytes, start, end) of everything that is neither space nor comment."""
    for found in TOKEN.finditer(text):
        if found.lastgroup not in ("space", "comment"):
            # `lastgroup` of a heredoc is the last group that closed: the heredoc itself.
            yield found.lastgroup, found.group(), found.start(), found.end()


def unquote(name):
    if name[:1] in (b"`", b'"'):
        quote = name[:1]
        name = name[1:-1].replace(quote + quote, quote)
        name = re.sub(rb"\\(.)", rb"\1", name, flags=re.DOTALL)
    return name.decode("utf-8", "replace")


def parse_insert(text):
    """An `Insert` when `text` begins with one that carries data, else None.

    `data_at` may lie beyond `text`: then all data is in what follows it.
    """
    stream = tokens(text)

    def following():
        return next(stream, ("end", b"", len(text), len(text)))

    kind, token, _, _ = following()
    if kind != "word" or token.lower() != b"insert":
        return None
    kind, token, _, _ = following()
    if token.lower() == b"into":
        kind, token, _, _ = following()
    if kind == "word" and token.lower() == b"table":
        kind, token, _, _ = following()
    if kind == "word" and token.lower() == b"function":
        kind, token, _, _ = following()
    if kind not in ("word", "quoted"):
        return None
    table = unquote(token)
    depth = 0
    dotted = False
    settings_at = None

    def found(start, format, data_at):
        split = start if settings_at is None else settings_at
        return Insert(text[:split], text[split:start], table, format, data_at)

    while True:
        kind, token, start, token_end = following()
        lowered = token.lower() if kind == "word" else b""
        if kind == "end":
            return None  # Neither FORMAT nor VALUES: the engine says what is wrong with it.
        if token == b"(":
            depth += 1
        elif token == b")":
            depth -= 1
        elif depth > 0:
            pass
        elif token == b".":
            dotted = True
            continue
        elif dotted:
            table += "." + unquote(token)
        elif lowered in (b"select", b"with", b"from", b"watch"):
            return None
        elif lowered == b"values":
            return found(start, "Values", token_end)
        elif lowered == b"format":
            kind, token, _, token_end = following()
            if kind not in ("word", "quoted"):
                return None
            return found(start, unquote(token), skip_to_data(text, token_end))
        elif lowered == b"settings" and settings_at is None:
            settings_at = start
        if depth == 1 and lowered in (b"select", b"with"):
            # INSERT INTO t (SELECT ...): a column cannot have either name unquoted.
            return None
        dotted = False


def skip_to_data(text, at):
    """Data starts after the first line break, if only blanks lie before it, else after them."""
    while text[at : at + 1] in (b" ", b"\t", b"\f"):
        at += 1
    if text[at : at + 1] == b"\r":
        at += 1
    if text[at : at + 1] == b"\n":
        at += 1
    return at


def output_format(text):
    """The name in the statement's FORMAT clause, or None."""
    depth = 0
    named = None
    after_format = False
    for kind, token, _, _ in tokens(text):
        if token == b"(":
            depth += 1
        elif token == b")":
            depth -= 1
        elif after_format and kind in ("word", "quoted"):
            named = unquote(token)
        after_format = depth == 0 and kind == "word" and token.lower() == b"format"
    return named


def second_statement_at(text):
    """Where a second statement begins, or None."""
    ended = False
    for _, token, start, _ in tokens(text):
        if token == b";":
            ended = True
        elif ended:
            return start
    return None


def literal(value):
    """`value` as a string literal of ClickHouse."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name):
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"
