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

# What is worth a closer look by `not_for_a_server`.
FOREIGN = re.compile(rb"input|outfile|infile", re.IGNORECASE)

# An INSERT's head (names, columns, settings) is looked for in this much of the statement.
HEAD_BYTES = 256 * 1024


class Insert:
    """An INSERT whose data follows the statement: `head`, `settings`, FORMAT and the data.

    `input` is where its `input(structure)` stands in `head` when it SELECTs from the data:
    (start, where the structure begins, end).
    """

    def __init__(self, head, settings, table, format, data_at, input=None):
        self.head = head
        self.settings = settings
        self.table = table
        self.format = format
        self.data_at = data_at
        self.input = input


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
    selects = False
    settings_at = None
    # Of each `input(` that was seen: its start, where its structure begins, its depth, its end.
    inputs = []
    word_before = (b"", 0)

    def found(start, format, data_at):
        split = start if settings_at is None else settings_at
        if not selects:
            return Insert(text[:split], text[split:start], table, format, data_at)
        if len(inputs) != 1 or inputs[0][3] is None:
            return None  # Nothing reads the data, or in a way that `not_for_a_server` names.
        begins, structure, _, ends = inputs[0]
        return Insert(text[:start], b"", table, format, data_at, (begins, structure, ends))

    while True:
        kind, token, start, token_end = following()
        lowered = token.lower() if kind == "word" else b""
        if kind == "end":
            return None  # Neither FORMAT nor VALUES: the engine says what is wrong with it.
        before, word_before = word_before, (lowered, start)
        if token == b"(":
            if before[0] == b"input" and selects:
                inputs.append([before[1], token_end, depth, None])
            depth += 1
        elif token == b")":
            depth -= 1
            if inputs and inputs[-1][2] == depth and inputs[-1][3] is None:
                inputs[-1][3] = token_end
        elif depth > 0:
            pass
        elif token == b"." and not selects:
            dotted = True
            continue
        elif dotted:
            table += "." + unquote(token)
        elif lowered in (b"select", b"with") or selects and lowered == b"from":
            selects = True
        elif lowered in (b"from", b"watch"):
            return None
        elif lowered == b"values" and not selects:
            return found(start, "Values", token_end)
        elif lowered == b"format" and before[0] != b"as":
            kind, token, _, token_end = following()
            if kind not in ("word", "quoted"):
                return None
            return found(start, unquote(token), skip_to_data(text, token_end))
        elif lowered == b"settings" and settings_at is None:
            settings_at = start
        if depth == 1 and lowered in (b"select", b"with"):
            # INSERT INTO t (SELECT ...): a column cannot have either name unquoted.
            selects = True
        dotted = False


def not_for_a_server(text):
    """What of the statement a server does otherwise than the engine, or None.

    A server has no files of its client, and the engine takes no data for `input`, and says nothing.
    """
    if not FOREIGN.search(text):
        return None
    before = b""
    for kind, token, _, _ in tokens(text):
        lowered = token.lower() if kind == "word" else b""
        if before == b"input" and token == b"(":
            return "input() other than once, in INSERT INTO ... SELECT ... FORMAT ... with its data"
        if (before, lowered) in ((b"into", b"outfile"), (b"from", b"infile")):
            return f"{before.decode().upper()} {lowered.decode().upper()} over HTTP"
        before = lowered
    return None


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
