"""Every committed figure can be redrawn from what is committed, and shows the same data."""

import json

import pytest
from matplotlib.image import imread

from analysis import all as every
from analysis import comparisons, distill, hard_mix, surrogates
from analysis.cells import COLOR_OF
from analysis.drawing import RESULTS, drawn
from rlx.errors import InputError

DRAWINGS = every.drawings()
SAID = json.loads((RESULTS / "drawn.json").read_text())


def test_every_picture_is_of_the_list():
    pictures = {str(path.relative_to(RESULTS).with_suffix("")) for path in RESULTS.rglob("*.png")}
    shots = {name for name in pictures if name.startswith("page/")}  # of a browser, not drawn here
    assert pictures - shots == set(SAID)
    assert set(DRAWINGS) == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_a_figure_shows_what_it_showed(name):
    """Panels, words, and where the points lie; `python -m analysis.all` writes drawn.json."""
    panels = json.loads(json.dumps(drawn(DRAWINGS[name].draw())))
    assert len(panels) == len(SAID[name])
    for panel, said in zip(panels, SAID[name], strict=True):
        assert panel.pop("words") == said["words"]
        assert panel == {
            kind: pytest.approx(where, rel=1e-3, abs=1e-6)
            for kind, where in said.items()
            if kind != "words"
        }


def test_one_figure_is_redrawn(tmp_path, capsys):
    every.main(["only=tool/turns", f"out={tmp_path}"])
    assert capsys.readouterr().out == (
        "tool/turns.png  from tool/evals.csv, by python -m analysis.turns\n"
    )
    assert json.loads((tmp_path / "drawn.json").read_text()) == {"tool/turns": SAID["tool/turns"]}
    assert imread(tmp_path / "tool" / "turns.png").std() > 0.05


def test_a_figure_without_tables_is_named_and_left_out(tmp_path, capsys):
    every.main(["only=turns", f"results={tmp_path}", f"out={tmp_path}"])
    said = capsys.readouterr().out
    assert said.startswith(f"turns/turns.png  left out: {tmp_path}/turns/evals.csv is missing, of")
    assert not list(tmp_path.rglob("*.png"))


def test_an_unknown_figure_is_refused():
    with pytest.raises(InputError, match="only=fig99: no such figure; use default|studies|"):
        every.main(["only=fig99"])


def test_every_recipe_has_a_colour():
    named = [one.recipes for one in comparisons.FIGURES.values()]
    named += [surrogates.NAMES, hard_mix.ABLATIONS, distill.NAMES]
    assert {name for names in named for name in names} <= set(COLOR_OF)


def test_what_is_drawn_is_told_apart():
    """A point moved, a curve more and another word are seen."""
    figure = DRAWINGS["tool/turns"].draw()
    before = json.dumps(drawn(figure))
    (ax,) = figure.axes
    line = ax.lines[0]
    x, y = line.get_data()
    for change, back in (
        (lambda: line.set_data(x, y + 0.01), lambda: line.set_data(x, y)),
        (lambda: ax.plot([0, 1], [0, 1]), lambda: ax.lines[-1].remove()),
        (lambda: ax.set_xlabel("tokens"), lambda: ax.set_xlabel("samples")),
    ):
        change()
        assert json.dumps(drawn(figure)) != before
        back()
        assert json.dumps(drawn(figure)) == before
