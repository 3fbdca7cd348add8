"""What a run expects of itself, and how that ends it."""

import re
from dataclasses import asdict, replace

import pytest

from experiments.outlook import NOT_YET, Forecaster, outlook
from rlx.config import AlgoConfig, Config, ForecastConfig, SftConfig, run_sha
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.train import rl
from rlx.train.loop import Outlook
from tests.scaling.hand import hand_fit


def watching(stop_when=""):
    return Config(forecast=ForecastConfig(every_evals=2, stop_when=stop_when))


def test_the_end_and_the_gain_are_those_of_the_curve():
    """R = 0.2 + 0.4 C / (C + 1): 0.5200 at 4, 0.5556 at 8, 0.5692 at 12."""
    fit = hand_fit({"a": [(0.6, 1.0, 1.0)] * 4})
    found = outlook(fit, "a-s0", 3.0, watching("gain_of_next_2x < 0.04 with 0.9"))
    assert found.numbers["end"] == pytest.approx(0.2 + 0.4 * 12 / 13)
    assert found.numbers["gain_of_next_2x"] == pytest.approx(0.4 * (8 / 9 - 4 / 5))
    assert found.text.startswith("end 0.569 [0.569, 0.569], gain_of_next_2x 0.036 [")
    assert found.stop == "P(gain_of_next_2x < 0.04) = 1.000"
    for condition in ("gain_of_next_2x < 0.03 with 0.9", "end > 0.57 with 0.5", ""):
        assert not outlook(fit, "a-s0", 3.0, watching(condition)).stop


def test_a_ceiling_that_is_not_identified_is_not_yet():
    assert outlook(hand_fit({"a": [(0.6, 9.0, 1.0)] * 4}), "a-s0", 3.0, watching()) == NOT_YET


@pytest.mark.parametrize(
    "options, line",
    [
        (
            {"stop_when": "gain < 0.1"},
            "forecast.stop_when=gain < 0.1: not a condition; write NAME < N",
        ),
        ({"stop_when": "end < 0.5 with 0.9"}, "forecast.every_evals=0: no forecasts; .*a number"),
        ({"every_evals": -1}, "forecast.every_evals=-1: negative"),
    ],
)
def test_what_cannot_be_forecast_is_one_line(options, line):
    with pytest.raises(InputError, match=line):
        ForecastConfig(**options)


def test_forecasts_change_no_name():
    assert run_sha(watching()) == run_sha(Config())


def test_siblings_are_finished_and_differ_in_the_seed_alone(tmp_path):
    config = replace(watching(), out=str(tmp_path / "runs" / "me"))
    others = {
        "seed": (replace(Config(), seed=1), "done"),
        "running": (replace(Config(), seed=2), "running"),
        "other": (replace(Config(), seed=1, steps=7), "done"),
        "me": (config, "done"),
    }
    for name, (other, status) in others.items():
        record = RunRecord(tmp_path / "runs" / name)
        record.update_manifest(config=asdict(other), status=status)
    assert [path.name for path in Forecaster(config).siblings()] == ["seed"]


def test_a_run_ends_where_its_forecast_says_so_and_may_go_on(easy, tmp_path):
    """The same command finds it ended; without the condition it makes the curve that it would."""
    whole = rl.train(replace(easy, out=str(tmp_path / "whole")), progress=False)
    config = replace(
        easy, out=str(tmp_path / "it"), forecast=watching("end < 0.5 with 0.9").forecast
    )
    asked = []

    def forecast():
        asked.append(len(read_rows(tmp_path / "it" / "evals.jsonl")))
        return Outlook(stop="enough") if len(asked) == 2 else Outlook()

    manifest = rl.train(config, progress=False, forecast=forecast)
    assert manifest["status"] == "stopped: enough" and asked == [1, 2]
    assert rl.train(config, progress=False, forecast=forecast) == manifest and len(asked) == 2
    on = rl.train(replace(config, forecast=ForecastConfig()), progress=False)
    assert (on["status"], whole["status"]) == ("done", "done")
    for name in ("evals.jsonl", "metrics.jsonl"):
        assert read_rows(tmp_path / "it" / name) == read_rows(tmp_path / "whole" / name)


def test_a_run_says_what_it_expects_every_so_often(easy, tmp_path, capsys):
    """Evaluations after updates 2, 4 and 6; a forecast after the second of them."""
    config = replace(easy, out=str(tmp_path / "runs" / "it"), forecast=ForecastConfig(2))
    rl.train(config, progress=False, forecast=Forecaster(config))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("it, update")]
    assert len(lines) == 1
    assert re.fullmatch(r"it, update 4: (forecast: not yet|end [\d.]+ \[.*)", lines[0])


@pytest.mark.parametrize("options", [{"until": 3}, {"forecast": ForecastConfig(2)}])
def test_supervised_runs_neither_pause_nor_forecast(options):
    algo = AlgoConfig(loss="reinforce", advantage="none")
    with pytest.raises(InputError, match="only for reinforcement learning; leave it out"):
        SftConfig(algo=algo, **options)
