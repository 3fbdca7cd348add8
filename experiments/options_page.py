"""The page of every option, written from rlx/config.py.

    python -m experiments.options_page > docs/options.md

The comment of a field is its meaning; `ranges` and `names` of its section are its values.
tests/test_docs.py compares the page with this output.
"""

from __future__ import annotations

import ast
import inspect
import tokenize
from dataclasses import MISSING, Field, fields, is_dataclass
from io import StringIO

from rlx import config
from rlx.objectives.advantages import ADVANTAGES
from rlx.objectives.losses import LOSSES
from rlx.objectives.weights import AGGREGATIONS

HEAD = """# Options

Every option of a run, written by `python -m experiments.options_page > docs/options.md` from
[rlx/config.py](../rlx/config.py). Give any of them on the command line, `optim.learning_rate=1e-4`,
or in a file of [conf](../conf). The defaults are those of the class; groups such as `model=tiny`
and `optim=tiny`, which `experiments.train` composes first, may set others. A meaning that begins
with "..." continues the row above.
"""
MORE = {  # experiments with further options
    "`experiments.sft`": config.SftConfig,
    "`experiments.reward_model`": config.RewardModelConfig,
}
REGISTERED = {"loss": LOSSES, "advantage": ADVANTAGES, "aggregation": AGGREGATIONS}


def page() -> str:
    """The whole page, as Markdown."""
    sections = [f.default_factory for f in fields(config.Config)]
    parts = [HEAD, _table("Of the run", config.Config, set())]
    for kind in filter(is_dataclass, sections):
        parts.append(_table(f"`{kind.section.rstrip('.')}`", kind, set()))
    shared = {f.name for f in fields(config.Config)}
    parts += [_table(f"Of {command} besides", kind, shared) for command, kind in MORE.items()]
    return "\n".join(parts)


def _table(title: str, kind: type, without: set[str]) -> str:
    """One section: a row per field that is not itself a section."""
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    comments = comments_of(kind)
    for option in fields(kind):  # ty: ignore[invalid-argument-type]
        if option.name in without or is_dataclass(option.default_factory):
            continue
        default = option.default if option.default is not MISSING else option.default_factory()
        cells = (f"`{kind.section}{option.name}`", f"`{_shown(default)}`", _values(kind, option))
        rows.append(f"| {' | '.join(cells)} | {comments.get(option.name, '')} |")
    text = inspect.cleandoc(kind.__doc__ or "") if "__doc__" in vars(kind) else ""
    text = "" if text.startswith(f"{kind.__name__}(") else f"{text}\n\n"
    return f"## {title}\n\n{text}" + "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value) or '""'


def _values(kind: type, option: Field) -> str:
    """The choices of an option, the interval of a number, else its type."""
    if words := kind.names.get(option.name, REGISTERED.get(option.name)):
        return ", ".join(f"`{word}`" for word in words)
    found = [i for i, names in kind.ranges.items() if option.name in names.split()]
    name = str(option.type).partition("[")[0]
    return f"{name} in {found[0]}" if found else name


def comments_of(kind: type) -> dict[str, str]:
    """The comment at the end of each field's line, by name."""
    source = inspect.getsource(kind)
    lines = StringIO(source).readline
    notes = {
        t.start[0]: t.string for t in tokenize.generate_tokens(lines) if t.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0].body  # ty: ignore[unresolved-attribute]
    found = {n.target.id: notes.get(n.end_lineno, "") for n in body if isinstance(n, ast.AnnAssign)}
    return {name: text.lstrip("# ").replace("|", "\\|") for name, text in found.items() if text}


if __name__ == "__main__":
    print(page(), end="")
