import importlib.util
import json
import os
import sys

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlx.envs import base, data
from rlx.errors import InputError

POOL = [(f"q{i}", i) for i in range(30)]


def test_rows_of_jsonl_and_parquet(tmp_path):
    found = [{"question": "a", "answer": "1"}, {"question": "é", "answer": "2"}]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n\n".join(map(json.dumps, found)) + "\n")
    table = tmp_path / "rows.parquet"
    pd.DataFrame(found).to_parquet(table)
    assert [row for _, row in data.rows(str(lines))] == found
    assert [row for _, row in data.rows(str(table))] == found
    assert data.rows(str(lines))[1][0] == f"env.kwargs.path={lines}: line 3"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", None, "no such file; give a .jsonl or .parquet file"),
        ("a.csv", b"x", "neither .jsonl nor .parquet; convert it"),
        ("a.jsonl", b"\n \n", "it holds no rows; give another file"),
        (
            "a.jsonl",
            b'{"a": 1}\n\n{"a": \n',
            "line 3 is not JSON (Expecting value at character 8); f",
        ),
        ("a.jsonl", b'{"a": 1}\n\xff\xfe\n', "line 2 is not JSON ('utf-8' codec can't decode"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object; write one object per line"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON ("),
        ("a.parquet", b"PAR1", "not Parquet ("),
        ("a.parquet", b"PAR1" + bytes(range(256)) + b"PAR1", "not Parquet ("),
        (
            "a.jsonl",
            b'{"a": NaN}\n',
            "line 1 is not JSON (NaN is not valid JSON); fix that line",
        ),
        ("a.jsonl", b'{"a": 1, "a": 2}', "line 1 is not JSON ('a' twice); fix that line"),
        ("a.jsonl", b'{"a": 1' + b"0" * 5000 + b"}", "line 1 is not JSON ("),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "line 1 is not JSON ("),
        (
            "a.jsonl",
            b'[{"a": 1}, {"a": 2}]',
            "line 1 is not a JSON object; write one object per line",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        data.rows(str(path))
    assert str(error.value).startswith(f"env.kwargs.path={path}: {message}")
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "nowhere")
    for name, reason in [("a", "not a file"), ("b", "not a file"), ("c", "no such file")]:
        path = str(tmp_path / f"{name}.jsonl")
        with pytest.raises(InputError) as error:
            data.rows(path, "env.kwargs.heldout_path")
        assert str(error.value) == (
            f"env.kwargs.heldout_path={path}: {reason}; give a .jsonl or .parquet file"
        )
    for path in (
        "x" * 5000 + ".jsonl",
        "\0.jsonl",
        "package:",
        "package:__main__/a",
        "package:../a",
    ):
        with pytest.raises(InputError, match="env.kwargs.path="):
            data.rows(path)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
OBJECTS = st.dictionaries(TEXT, VALUES | st.lists(VALUES, max_size=3), max_size=4)
FORMS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n", b"\n\t\n"])
LINES = st.lists(st.tuples(OBJECTS.map(json.dumps), FORMS), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "rows.jsonl"


@settings(max_examples=100, deadline=None)
@given(LINES, st.booleans())
def test_rows_are_what_was_written(file, lines, mark):
    text = b"".join(line.encode() + end for line, end in lines if "Infinity" not in line)
    if text:
        file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text)
        expected = [json.loads(line) for line, _ in lines if "Infinity" not in line]
        assert [row for _, row in data.rows(str(file))] == expected


PIECES = st.sampled_from([b'{"question": "a", "answer": "1"}', b"\n", b"[", b'{"question":', b"}"])
BYTES = st.lists(PIECES | st.binary(max_size=6), max_size=12).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(BYTES)
@example(b'{"question": "\\ud800", "answer": 1}')
@example(b'{"question": "  ", "answer": 1}')
@example(b'{"question": "a", "answer": 1e999}')
def test_any_bytes_give_an_environment_or_one_line(file, content):
    file.write_bytes(content)
    sizes = {"train_prompts": 1, "heldout_prompts": 1}
    for name in ("math", "preference"):
        with pytest.raises(InputError) as error:
            base.make(name, **sizes, seed=0, kwargs={"path": str(file)})
        message = str(error.value)
        assert message.startswith("env.") and "; " in message and message.isprintable()
    for name in ("math", "preference"):
        arguments = {"train_prompts": 0, "heldout_prompts": 1, "seed": 0}
        try:
            env = base.build(name, **arguments, kwargs={"path": str(file)})
        except InputError:
            continue
        assert all(p.prompt.encode() for p in env.heldout)


def test_a_file_inside_a_package_is_found_without_importing_it():
    import numpy

    found = data.locate("package:numpy/version.py")
    assert found.is_file() and str(found).startswith(numpy.__path__[0])
    with pytest.raises(ValueError, match="env.kwargs.path=package:nowhere/a.jsonl: nowhere is not"):
        data.locate("package:nowhere/a.jsonl")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"a": 1}, "line 4 has no x or y (fields: a); set env.kwargs.xs_field or fix it"),
        ({}, "line 4 has no x or y (fields: none); set env.kwargs.xs_field or fix it"),
        ({"y": ""}, "line 4 has no x or y (fields: y); set env.kwargs.xs_field or fix it"),
        ({"x": ["z"]}, "line 4 holds a list instead of text; set env.kwargs.xs_field"),
    ],
)
def test_missing_fields_are_named(row, message):
    with pytest.raises(ValueError) as error:
        data.text_field(("env.kwargs.path=a.jsonl: line 4", row), ("x", "y"), "xs_field")
    assert str(error.value) == f"env.kwargs.path=a.jsonl: {message}"
    assert data.text_field(("", {"x": None, "y": 7}), ("x", "y"), "xs_field") == "7"


def test_divided_by_prompt_and_seed():
    def split(train_prompts=20, seed=0, pool=POOL, **kwargs):
        sizes = {"train_prompts": train_prompts, "heldout_prompts": 5}
        return data.divide(pool, **sizes, seed=seed, source="rows", **kwargs)

    train, heldout = split()
    prompts = [p.prompt for p in train + heldout]
    assert len(set(prompts)) == 25 and all(p.prompt == f"q{p.answer}" for p in train)
    assert [p.id for p in heldout] == [0, 1, 2, 3, 4]
    assert split() == (train, heldout) and split(seed=1)[1] != heldout
    assert split(train_prompts=3)[1] == heldout
    assert split(pool=POOL * 2) == (train, heldout)  # repeated prompts count once
    train, heldout = split(heldout_pool=POOL[:7])
    assert {p.prompt for p in heldout} < {f"q{i}" for i in range(7)}
    assert not {p.prompt for p in heldout} & {p.prompt for p in train}
    train, heldout = split(train_prompts=5, longest=2)  # q0 to q9
    assert {p.prompt for p in train + heldout} == {f"q{i}" for i in range(10)}


def test_too_few_prompts():
    def complaint(train_prompts, heldout_prompts, **kwargs):
        sizes = {"train_prompts": train_prompts, "heldout_prompts": heldout_prompts}
        with pytest.raises(ValueError) as error:
            data.divide(POOL, **sizes, seed=0, source="rows", **kwargs)
        return str(error.value)

    assert complaint(26, 5) == (
        "env.train_prompts=26: rows has only 25 distinct prompts besides env.heldout_prompts=5; "
        "ask for fewer"
    )
    assert complaint(1, 31).startswith(
        "env.heldout_prompts=31: rows has only 30 distinct prompts to"
    )
    said = complaint(26, 5, heldout_pool=POOL[:5])
    assert said.startswith("env.train_prompts=26: rows has only 25")


def test_the_hub_needs_its_library_and_a_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="env.kwargs.dataset=a/b: cannot import datasets"):
        data.hub_rows("a/b", None, "train")


def test_rows_of_a_dataset_in_a_folder(tmp_path, monkeypatch):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "1"}\n')
    code = f"from rlx.envs import data; print(data.hub_rows({str(tmp_path)!r}, None, 'train'))"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "{'question': 'a', 'answer': '1'})]" in done.stdout, done.stderr
