import importlib.util
import json
import sys

import pandas as pd
import pytest

from rlx.envs import data

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
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3 is not JSON (Expecting value: line 2 col"),
        ("a.jsonl", b'{"a": 1}\n\xff\xfe\n', "line 2 is not JSON ('utf-8' codec can't decode"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object; one object per line"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON ("),
        ("a.parquet", b"PAR1", "not Parquet ("),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        data.rows(str(path))
    assert str(error.value).startswith(f"env.kwargs.path={path}: {message}")
    assert "\n" not in str(error.value)


def test_a_file_inside_a_package_is_found_without_importing_it():
    import numpy

    found = data.locate("package:numpy/version.py")
    assert found.is_file() and str(found).startswith(numpy.__path__[0])
    with pytest.raises(ValueError, match="env.kwargs.path=package:nowhere/a.jsonl: nowhere is not"):
        data.locate("package:nowhere/a.jsonl")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"a": 1}, "line 4 has no x or y (fields: a); set env.kwargs.xs_field or mend it"),
        ({}, "line 4 has no x or y (fields: none); set env.kwargs.xs_field or mend it"),
        ({"y": ""}, "line 4 has no x or y (fields: y); set env.kwargs.xs_field or mend it"),
        ({"x": ["z"]}, "line 4 holds a list where text belongs; set env.kwargs.xs_field"),
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
        "env.train_prompts=26: rows holds 25 distinct prompts besides env.heldout_prompts=5; "
        "ask for fewer"
    )
    assert complaint(1, 31).startswith("env.heldout_prompts=31: rows holds 30 distinct prompts to")
    assert complaint(26, 5, heldout_pool=POOL[:5]).startswith("env.train_prompts=26: rows holds 25")


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
