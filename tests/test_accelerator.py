"""The command for whoever has a card, at sizes for a CPU: every part's rows, and its table."""

import json
import sys

import pytest

from experiments import accelerator


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


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "out=: nothing to work with; give out=DIR"),
        (["out=a", "parts=floors,speed"], "parts=speed: unknown name; use floors, decode"),
        (["out=a", "size=huge"], "size=huge: unknown name; use card, tiny"),
        (["out=a", "minutes=0"], "minutes=0.0: nothing to work with; give minutes above 0"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
