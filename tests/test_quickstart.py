"""The example for notebooks: a classifier of digits, and its inversion."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_the_notebook_has_the_cells_of_the_script():
    _, *cells = (DOCS / "quickstart.py").read_text().split("# %% ")
    notebook = json.loads((DOCS / "quickstart.ipynb").read_text())
    code, text = (
        ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == t]
        for t in ("code", "markdown")
    )
    for cell, heading, source in zip(cells, text[1:], code, strict=True):
        title, _, body = cell.partition("\n")
        assert heading == title
        assert source == body.strip()
    # With the digits that it ends in.
    assert "image/png" in json.dumps(notebook["cells"][-1])


@pytest.mark.slow
def test_the_script_inverts_a_classifier_of_digits(tmp_path):
    result = subprocess.run(
        [sys.executable, DOCS / "quickstart.py"],
        env={**os.environ, "MPLBACKEND": "Agg"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    accuracy, agreement = (
        float(re.search(rf"{name}: (.*)%", result.stdout)[1])
        for name in ("accuracy", "agreement")
    )
    # One class of ten is 10 %.
    assert accuracy > 85 and agreement > 80
