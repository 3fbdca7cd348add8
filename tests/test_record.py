"""Run directories: rows that survive a crash, a manifest that is never half written."""

import json
import zlib

import pytest

from rlx import record
from rlx.errors import InputError
from rlx.record import RunRecord, contents, read_rows, runs, write_json


def test_rows_come_back_in_order(tmp_path):
    run = RunRecord(tmp_path / "a" / "run")
    for i in range(3):
        run.append("evals.jsonl", {"step": i, "mean": 0.1 * i})
    assert run.rows("evals.jsonl") == [{"step": i, "mean": 0.1 * i} for i in range(3)]
    assert run.rows("metrics.jsonl") == []


@pytest.mark.parametrize("torn", ["", "{", '{"step": 1', '{"step": 1}'])
def test_a_torn_last_line_is_left_out(tmp_path, torn):
    (tmp_path / "x.jsonl").write_text('{"step": 0}\n' + torn)
    assert read_rows(tmp_path / "x.jsonl") == [{"step": 0}]


@pytest.mark.parametrize("line", [b'{"step"', b"[1]", b"", b"\0\0\0", b"\xff", b"[" * 100_000])
def test_damage_before_the_last_line_is_named(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n')
    with pytest.raises(
        InputError, match=r"x.jsonl:2=.*: not (JSON|a JSON object).*; fix or remove that"
    ):
        read_rows(tmp_path / "x.jsonl")


def test_records_go_back_to_an_earlier_size(tmp_path):
    run = RunRecord(tmp_path)
    run.append("evals.jsonl", {"step": 0})
    run.append("clock.jsonl", {"step": 0})
    size = (tmp_path / "evals.jsonl").stat().st_size
    run.append("evals.jsonl", {"step": 1})
    run.truncate({"evals.jsonl": size, "metrics.jsonl": 0})  # one of them does not exist
    assert run.rows("evals.jsonl") == [{"step": 0}] and run.rows("metrics.jsonl") == []
    run.append("evals.jsonl", {"step": 2})
    assert run.rows("evals.jsonl") == [{"step": 0}, {"step": 2}]
    assert run.rows("clock.jsonl") == [{"step": 0}]


def test_a_manifest_keeps_the_fields_that_are_not_updated(tmp_path):
    run = RunRecord(tmp_path)
    assert run.manifest == {}
    run.update_manifest(seed=1, status="running")
    run.update_manifest(status="done")
    assert RunRecord(tmp_path).manifest == {"seed": 1, "status": "done"}


def test_a_crash_while_writing_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "manifest.json"
    write_json(file, {"status": "running"})

    def crash(value, file, **_):
        file.write('{"status": "do')
        raise KeyboardInterrupt

    monkeypatch.setattr(record.json, "dump", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(file, {"status": "done"})
    assert json.loads(file.read_text()) == {"status": "running"}


def test_a_study_is_its_runs_and_a_run_is_itself(tmp_path):
    for name in ("b", "a", "empty"):
        run = RunRecord(tmp_path / "runs" / name)
        if name != "empty":
            run.update_manifest(run_id=name)
    assert runs(tmp_path) == [tmp_path / "runs" / "a", tmp_path / "runs" / "b"]
    assert runs(tmp_path / "runs" / "a") == [tmp_path / "runs" / "a"]
    assert runs(tmp_path / "nowhere") == []


def a_file(path):
    path.write_text("")


def a_dangling_link(path):
    path.symlink_to(path.parent / "nowhere" / "at all")


def a_device(path):
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("make", [a_file, a_dangling_link, a_device])
@pytest.mark.parametrize("below", ["", "below"])
def test_a_path_that_can_be_no_directory_is_refused(tmp_path, make, below):
    make(tmp_path / "run")
    path = tmp_path / "run" / below
    with pytest.raises(
        InputError, match=f"^out={path}: .*; choose a directory that can be created"
    ):
        RunRecord(path)
    assert RunRecord(path, writes=False).manifest == {}


def test_what_only_reads_makes_nothing(tmp_path):
    assert RunRecord(tmp_path / "run", writes=False).manifest == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [b"", b"[1]", b"{", b"\xff\xfe", b"3"])
def test_a_manifest_that_is_none_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(InputError, match="manifest.json=.*: not (JSON|a JSON object)"):
        print(RunRecord(tmp_path).manifest)


def test_rows_are_not_added_to_a_file_that_another_process_changed(tmp_path):
    run = RunRecord(tmp_path)
    run.append("evals.jsonl", {"step": 0})
    (tmp_path / "evals.jsonl").write_text("")
    with pytest.raises(InputError, match="evals.jsonl was changed by another process"):
        run.append("evals.jsonl", {"step": 1})


def test_files_that_options_name_are_known_by_their_bytes(tmp_path, monkeypatch):
    module, traces = tmp_path / "losses_of_mine.py", tmp_path / "traces.jsonl"
    module.write_bytes(b"def mine(): ...")
    traces.write_bytes(b"{}")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"algo.loss": "losses_of_mine:mine", "traces": str(traces), "env.name": "digit_chain"}
    given |= {"model.path": str(traces), "env.kwargs.path": str(tmp_path), "steps": 4}
    crcs = {"algo.loss": zlib.crc32(b"def mine(): ..."), "traces": zlib.crc32(b"{}")}
    assert contents(given) == crcs
    assert contents({"algo.loss": "no.such.module:mine", "env.prompt_template": "\0."}) == {}
