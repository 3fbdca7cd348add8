"""Calls between two programs: rlx.envs.code puts this text before an answer and before its tests.

The answer's process defines its functions and serves calls; the tests' process makes the calls and
compares. Only plain values are sent, as tagged JSON, so a returned value cannot carry behaviour (an
`__eq__` that is always true), and nothing in the answer reaches the tests' process. This file is
not imported: its text runs inside the sandbox.
"""

import builtins
import json
import os


def pack(value):
    """Plain data as JSON, with the kind of each container; raises TypeError on anything else."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    for name, kind in (("list", list), ("tuple", tuple), ("set", (set, frozenset))):
        if isinstance(value, kind):
            return [name, [pack(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    for kind in (bool, int, float, str):  # a plain value, even of a subclass
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot leave its process")


def unpack(data):
    if not isinstance(data, list):
        return data
    name, items = data
    if name == "bytes":
        return bytes.fromhex(items)
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in items}
    return {"list": list, "tuple": tuple, "set": set}[name](map(unpack, items))


class Channel:
    def __init__(self):
        number = int(os.environ["CHANNEL"])
        self.reader = os.fdopen(os.dup(number), "r")
        self.writer = os.fdopen(number, "w")

    def send(self, *values):
        self.writer.write(json.dumps(pack(list(values))) + "\n")
        self.writer.flush()

    def receive(self):
        """A list, or None once the other side has closed."""
        line = self.reader.readline()
        return unpack(json.loads(line)) if line else None


def serve(source):
    """Run `source`, then serve calls of its functions: (name, args, kwargs) -> value or error."""
    channel = Channel()
    space = {"__name__": "answer"}
    exec(compile(source, "answer", "exec"), space)
    while (asked := channel.receive()) is not None:
        name, args, kwargs = asked
        try:
            function = space.get(name) or getattr(space["Solution"](), name)
            channel.send("value", function(*args, **kwargs))
        except Exception as error:
            channel.send("error", type(error).__name__, str(error)[:1000])


def check(source, names):
    """Run tests whose `names` call the other side. Raises AssertionError if one fails."""
    channel = Channel()

    def remote(name):
        def function(*args, **kwargs):
            channel.send(name, args, kwargs)
            answer = channel.receive()
            if answer is None:
                raise SystemExit(1)  # the other side has closed
            if answer[0] == "value":
                return answer[1]
            kind = getattr(builtins, str(answer[1]), None)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError)

        return function

    exec(compile(source, "tests", "exec"), {name: remote(name) for name in names})
