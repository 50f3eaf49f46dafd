"""What the client's tests share, and the table of `make faults`."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "tests"))

from clients import trained_model  # noqa: E402
from local_cloud import FULL  # noqa: E402

COLUMNS = ("tried", "answered", "refused", "failed", "lost", "wrong", "twice", "seconds")
rows = []


@pytest.fixture(scope="session")
def model():
    """The bytes of target/model.json, made by notebook 01."""
    return trained_model()


def pytest_runtest_logreport(report):
    row = dict(report.user_properties).get("fault")
    if row and report.when == "call":
        # pytest-xdist sends the reports of all files here.
        crash = getattr(report.longrepr, "reprcrash", None)
        seen = row["seen"] if report.passed else "NOT SO: " + (crash.message.splitlines()[0] if crash else "")
        rows.append({**row, "seen": seen, "ok": report.passed, "seconds": round(report.duration, 1)})


def pytest_terminal_summary(terminalreporter):
    wanted = os.environ.get("CASE")
    if wanted and not rows:
        terminalreporter.line(f"no case's name contains {wanted!r}: {', '.join(sorted(cases()))}")
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.line(f"{'case':<66}" + "".join(f"{column:>9}" for column in COLUMNS))
    for row in rows:
        terminalreporter.line(f"{row['name'][:65]:<66}" + "".join(f"{row[column]:>9}" for column in COLUMNS))
        terminalreporter.line(f"    {row['seen']}")
    if {row["name"] for row in rows} == cases():  # not a part of them
        text = json.dumps({"full": FULL, "cases": rows}, indent=1)
        (ROOT / "target/faults.json").write_text(text + "\n")


def cases():
    """The names of all cases."""
    files = Path(__file__).with_name("faults").glob("test_*.py")
    names = [name for file in files for name in re.findall(r"^def test_(\w+)", file.read_text(), re.M)]
    return {name.replace("_", " ") for name in names}
