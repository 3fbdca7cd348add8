"""An interpreter that keeps its state: cells in, their printed output out, one JSON line each.

rlx.envs.python_tool runs it in the sandbox. This file is not imported: its text runs inside.
"""

import ast
import contextlib
import io
import json
import os
import sys


def run(source, space):
    """Like a console: prints the value of a last expression, unless it is None."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), space)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        if value is not None:
            print(repr(value))


def serve(most):
    """Serve until the other side closes. A reply: up to `most` characters, and the full length."""
    number = int(os.environ["CHANNEL"])
    reader, writer = os.fdopen(os.dup(number), "r"), os.fdopen(number, "w")
    sys.set_int_max_str_digits(most)
    space = {"__name__": "__main__"}
    for line in reader:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            try:
                run(json.loads(line), space)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}")
        text = shown.getvalue()
        writer.write(json.dumps([text[:most], len(text)]) + "\n")
        writer.flush()
