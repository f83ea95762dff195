"""What a failure test can ask for: errors, delays, lost answers, hangs, answers of a proxy.

Faults match statements by kind and table, are used up by count, and are all undone by one clear,
which also wakes whoever is waiting in a delay or a hang.
"""

import re
import threading

ACTIONS = ("error", "delay_before", "delay_after", "lose_answer", "drop", "hang", "page")


class Fault:
    def __init__(self, action, on, table, count, ms, code, text, status, over):
        self.action = action
        self.on = on
        self.table = table
        self.left = count
        self.ms = ms
        self.code = code
        self.text = text
        self.status = status
        self.over = over
        self.hits = 0

    def matches(self, is_insert, table, length):
        if self.left == 0 or length <= self.over or (self.on == "insert" and not is_insert):
            return False
        if self.on == "query" and is_insert:
            return False
        bare = table.rsplit(".", 1)[-1]
        return self.table is None or bool(self.table.search(table) or self.table.search(bare))

    def take(self):
        self.hits += 1
        if self.left is not None:
            self.left -= 1

    def report(self):
        return {
            "action": self.action,
            "on": self.on,
            "table": self.table.pattern if self.table else None,
            "left": self.left,
            "ms": self.ms,
            "code": self.code,
            "text": self.text,
            "status": self.status,
            "over": self.over,
            "hits": self.hits,
        }


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.active = []
        self.cleared = threading.Event()

    def add(self, asked):
        """One fault from the parameters of a request; ValueError says what is wrong with them."""
        known = {"action", "on", "table", "count", "ms", "code", "text", "status", "over"}
        if unknown := set(asked) - known:
            raise ValueError(f"unknown parameter: {', '.join(sorted(unknown))}")
        action = asked.get("action", "")
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}")
        on = asked.get("on", "insert")
        if on not in ("insert", "query", "any"):
            raise ValueError("on must be insert, query or any")
        try:
            table = re.compile(asked["table"]) if asked.get("table") else None
        except re.error as error:
            raise ValueError(f"table is no regular expression: {error}") from None
        count = int(asked["count"]) if "count" in asked else None
        ms = int(asked.get("ms", "0"))
        code = int(asked.get("code", "0"))
        if action == "error" and code <= 0:
            raise ValueError("an error needs its code")
        text = asked.get("text", "Injected by a test")
        status = int(asked.get("status", "200"))
        over = int(asked.get("over", "-1"))
        fault = Fault(action, on, table, count, ms, code, text, status, over)
        with self.lock:
            self.active.append(fault)

    def clear(self):
        with self.lock:
            self.active = []
            self.cleared.set()
            self.cleared = threading.Event()

    def take(self, is_insert, table, length):
        """The faults that strike this statement, by action, and the event that ends waiting."""
        struck = {}
        with self.lock:
            for fault in self.active:
                if fault.action not in struck and fault.matches(is_insert, table, length):
                    fault.take()
                    struck[fault.action] = fault
            return struck, self.cleared

    def report(self):
        with self.lock:
            return [fault.report() for fault in self.active]
