"""The command for whoever has a card, at sizes for a CPU: every part's rows, and its table."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import accelerator
from rlx.checkpoint import pack


def call(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["accelerator", *words])
    return accelerator.exit_status(accelerator.main)


def test_parts_are_kept_and_told(tmp_path, monkeypatch, capsys):
    words = [f"out={tmp_path}", "size=tiny", "minutes=10", "parts=floors,decode"]
    assert call(monkeypatch, *words) == 0
    floors, decode = (
        json.loads((tmp_path / f"{part}.json").read_text()) for part in ("floors", "decode")
    )
    (copy,) = [row["TB/s"] for row in floors if row["what"] == "copy"]
    errors = {row["what"]: row["relative_error"] for row in floors if "relative_error" in row}
    assert copy > 0 and errors["head in float32"] < 1e-5 < errors["head in bfloat16"] < 1e-2
    timed = [row for row in decode if "ms" in row]
    assert len(timed) == 2  # a dense model and a sparse one
    for row in timed:
        assert row["tok_s"] == pytest.approx(1e3 * row["slots"] / row["ms"])
        assert row["share"] == pytest.approx(row["floor_ms"] / row["ms"]) and 0 < row["share"] < 1
    table = capsys.readouterr().out
    assert table.startswith("floors:") and "decode:" in table and "tok_s" in table


@pytest.mark.slow
def test_every_part_at_sizes_for_a_cpu(tmp_path, monkeypatch, capsys):
    """The update's rows, and runs of a dense and a sparse model that agree bit for bit."""
    words = [f"out={tmp_path}", "size=tiny", "minutes=40", "parts=floors,update,runs"]
    assert call(monkeypatch, *words) == 0
    update, runs = (json.loads((tmp_path / f"{x}.json").read_text()) for x in ("update", "runs"))
    timed = [row for row in update if "ms" in row and 0 < row["mfu"] < 1]
    assert [row["layers"] for row in timed] == [
        *["unrolled"] * 2,
        *["scanned"] * 2,
        *["unrolled"] * 2,
    ]
    of = {row["what"]: row for row in runs}
    for model in ("tiny", "sparse"):
        new, known = of[f"{model}, new programs"], of[f"{model}, known programs"]
        assert known["compile_s"] < new["compile_s"] and new["exit_status"] == 0
        assert of[f"{model}, kernels"]["repeats"]
        killed = of[f"{model}, killed"]
        assert 0 < killed["updates"] < killed["of"] and killed["exit_status_of_the_rest"] == 0
        for name in ("second", "killed"):
            same = of[f"{model}, {name} run is the first, bit for bit"]
            assert same["evals.jsonl"] and same["metrics.jsonl"] and same["checkpoint"]
    assert "killed run is the first, bit for bit evals.jsonl True" in capsys.readouterr().out


# A run that does what its directory is told beside it: NAME.json holds its rows, and how it ends.
TRAINER = """
import json, pathlib, sys, time
out = pathlib.Path(next(w for w in sys.argv if w.startswith("out=")).removeprefix("out="))
out.mkdir(parents=True, exist_ok=True)
steps = {steps}
(out / "manifest.json").write_text(json.dumps({{"config": {{"steps": steps}}, "kernels": {{}}}}))
(out / "clock.jsonl").write_text(json.dumps({{"device_s": {{"compile": 2.5}}}}) + "\\n")
(out / "evals.jsonl").write_text("same\\n")
told = json.loads(({tmp!r} / pathlib.Path(out.name + ".json")).read_text())
with open(out / "metrics.jsonl", "w") as file:
    for row in range(steps):
        print(told if row == 5 else 0, file=file, flush=True)
        time.sleep(0.05)
"""


def test_runs_that_differ_are_told_by_their_rows_and_checkpoints(tmp_path, monkeypatch):
    trainer = TRAINER.format(steps=9, tmp="TMP").replace(
        "'TMP'", f"pathlib.Path({str(tmp_path)!r})"
    )
    monkeypatch.setattr(accelerator, "TRAIN", [sys.executable, "-c", trainer])
    monkeypatch.setattr(accelerator, "RUNS", {"tiny": {"a": []}})
    sums = {"first": 1, "second": 1, "killed": 2}
    for name in sums:
        (tmp_path / f"{name}.json").write_text("7" if name == "second" else "3")
    monkeypatch.setattr(accelerator, "checkpointed", lambda run: {"x": sums[run.name]})
    rows = list(accelerator.runs(accelerator.Options(size="tiny"), tmp_path))
    of = {row.pop("what"): row for row in rows}
    assert of["a, new programs"]["compile_s"] == 2.5 and of["a, new programs"]["exit_status"] == 0
    assert 0 < of["a, new programs"]["first_update_s"] < of["a, new programs"]["wall_s"] - 0.2
    assert 5 <= of["a, killed"]["updates"] < 9 == of["a, killed"]["of"]
    second, killed = (
        of[f"a, {name} run is the first, bit for bit"] for name in ("second", "killed")
    )
    assert second == {"evals.jsonl": True, "metrics.jsonl": False, "checkpoint": True}
    assert killed == {"evals.jsonl": True, "metrics.jsonl": True, "checkpoint": False}


def test_a_checkpoint_is_known_by_the_checksums_of_the_newest(tmp_path):
    for step, found in ((8, {"x": 1}), (12, {"x": 2})):
        with ocp.PyTreeCheckpointer() as checkpointer:
            blob = {"blob": np.asarray(pack({"checksums": found}))}
            checkpointer.save(tmp_path / "checkpoints" / str(step) / "host", blob)
    assert accelerator.checkpointed(tmp_path) == {"x": 2}


def test_a_part_that_takes_too_long_ends_with_what_it_has_started(tmp_path, monkeypatch, capsys):
    words = [f"out={tmp_path}", "size=tiny", "minutes=0.1", "parts=runs"]
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert "runs: stopped after 6 s" in said.err and "no result within its time" in said.out
    left = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in left and Path(tmp_path, "runs").exists()


def test_models_are_chosen_and_unrolled_layers_choose_their_attention(monkeypatch):
    (work,) = accelerator.chosen(accelerator.Options(models="qwen3_0_6b"))
    assert len(accelerator.chosen(accelerator.Options())) == 3
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    of = {scans: accelerator.model_of(work, scan_layers=scans) for scans in (True, False)}
    assert of[True].attention == "cudnn" and of[False].attention == "xla"


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "out=: cannot be used; give out=DIR"),
        (["out=a", "parts=floors,speed"], "parts=speed: unknown name; use floors, decode"),
        (["out=a", "size=huge"], "size=huge: unknown name; use card, tiny"),
        (["out=a", "models=tiny"], "models=tiny: unknown name; use all, smollm2_135m"),
        (["out=a", "kernels=any"], "kernels=any: unknown name; use repeatable, fastest"),
        (["out=a", "minutes=0"], "minutes=0.0: cannot be used; give minutes above 0"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
