"""Notebook 6 promises that another CSV needs other lines in one cell, and nothing else: here with wine."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from sklearn.datasets import load_wine
from test_notebooks import ROOT, cloud  # noqa: F401  (a fixture)

NOTEBOOK = ROOT / "notebooks/06_your_own_data.ipynb"


def write_csv(path: Path) -> list[str]:
    """scikit-learn's wine with a column that is no number and two gaps; returns the names of the features."""
    wine = load_wine()
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["bottle", "Cultivar", *wine.feature_names])
        for row, (values, label) in enumerate(zip(wine.data.tolist(), wine.target)):
            values[row % 7] = "?" if row in (20, 100) else values[row % 7]
            lines.writerow([f"no. {row}", wine.target_names[label], *values])
    return wine.feature_names


def changed(cell: str, path: Path, names: list[str]) -> str:
    """The cell with the lines that the notebook's last section lists, for this file."""
    lines = cell.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("const FEATURES"))
    assert lines[-1] == "];"
    features = [f'    ({json.dumps(name)}, "", [-1e4, 1e4]),' for name in names]
    new = {
        ":env MY_STACK": ":env MY_STACK=cellar",
        "const MY_STACK": 'const MY_STACK: &str = "cellar";',
        "const FILE": f"const FILE: &str = {json.dumps(str(path))};",
        "const MISSING": 'const MISSING: &str = "?";',
        "const TARGET": 'const TARGET: &str = "Cultivar";',
    }
    head = []
    for line in lines[: first + 1]:
        head += [next((text for start, text in new.items() if line.startswith(start)), line)]
    assert len(set(head) - set(lines)) == len(new), "a line to change is missing"
    return "\n".join([*head, *features, "];"])


def test_a_third_data_set_needs_other_lines_in_one_cell_and_nothing_else(
    cloud: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    names = write_csv(tmp_path / "wine.csv")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [cell for cell in notebook.cells if ":env MY_STACK=" in cell.source]
    cell.source = changed(cell.source, tmp_path / "wine.csv", names)
    nbformat.write(notebook, tmp_path / "cellar.ipynb")
    command = [
        sys.executable,
        "notebooks/kernel/run.py",
        "--out",
        tmp_path / "out",
        tmp_path / "cellar.ipynb",
    ]
    settings = cloud | {"DEVICE": f"own-{os.getpid()}"}
    done = subprocess.run(
        [*command, "--summary", tmp_path / "summary.json"], cwd=ROOT, env=settings, timeout=900,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())["own_data"]
    assert (found["rows"], found["features"], found["classes"]) == (
        176,
        13,
        ["class_0", "class_1", "class_2"],
    )
    # scikit-learn gets 0.983 with the same pipeline in five folds.
    assert found["cv_accuracy"] > 0.96 and found["correct"] >= 174
