"""Every notebook runs from its first cell to its last, as a reader's Jupyter would run it."""

import re
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "analysis" / "notebooks"


FIGURE = re.compile(r"^(?:plot|paper|comparisons)\.(?!FIGURES|main)\w+\(.*\)$", re.MULTILINE)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = jupytext.read(path)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises CellExecutionError on any error
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    shown = [any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells]
    assert shown == [bool(FIGURE.search(cell.source.splitlines()[-1])) for cell in cells]
    assert any(shown)


def test_the_notebook_of_a_study_asks_every_question():
    source = (FOLDER / "read_a_study.py").read_text()
    asked = {name for _, name in re.findall(r"\b(fit|sc|backtest)\.(\w+)\(", source)}
    questions = {"summary", "param", "curve", "predict", "prob", "prob_best", "compute_to", "gain"}
    questions |= {
        "efficiency",
        "effects",
        "allocate",
        "backtest",
        "trust",
        "check",
        "load",
        "score",
    }
    assert questions <= asked
    drawn = set(re.findall(r"\bplot\.(\w+)\(", source))
    assert drawn == {"curves", "ceilings", "effects", "ridge", "calibration"}
