"""The plans fit into their hours; the slides and the handout work without a network, on a projector, a phone and paper.

Slides need npm, and Chromium as client/tests/test_live.py does; without them those tests are skipped and say so. Pictures
lie in target/teach.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import schedule

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "client/tests"), str(ROOT / "deploy/tests")]

from test_live import SCREENS, axe, driver, page  # noqa: E402, F401  (fixtures)

PICTURES = ROOT / "target/teach"
DECK = schedule.slides(ROOT / "teach/slides.md")


# --- the schedule ------------------------------------------------------------------


def test_both_plans_fit_into_their_hours(capsys):
    schedule.main()
    printed = capsys.readouterr().out
    assert "of 120 minutes" in printed and "of 240 minutes" in printed, printed


def test_a_plan_that_is_too_long_fails(monkeypatch):
    monkeypatch.setattr(schedule, "notebooks", lambda folder: {"1": ("1 · Train", 111)})
    with pytest.raises(SystemExit, match="too long"):
        schedule.main()


def test_a_notebook_that_takes_longer_than_it_says_is_named(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# 1 · Train\n", "word " * 400]},
        {"cell_type": "code", "source": ["1;\n" * 20]},
        {"cell_type": "markdown", "source": ["## Deeper: why\n", "word " * 4000]},
        {"cell_type": "code", "source": ["1;\n" * 2000]},
        {"cell_type": "markdown", "source": ["## Summary\n", "word " * 200]},
    ]
    file = tmp_path / "01_train.ipynb"

    def minutes(core):
        return {"minutes": {"core": core, "deeper": 30}}

    for workshop, refused in (({}, True), (minutes(6), True), (minutes(7), False), (minutes(7) | {"wait_minutes": 1}, True)):
        file.write_text(json.dumps({"cells": cells, "metadata": {"workshop": workshop}}))
        if refused:
            with pytest.raises(schedule.Unplanned, match="01_train.ipynb takes"):
                schedule.notebooks(tmp_path)
        else:
            assert schedule.notebooks(tmp_path) == {"1": ("1 · Train", 7)}


def test_a_slide_without_minutes_is_named(tmp_path):
    deck = (ROOT / "teach/slides.md").read_text().replace("2 minutes. There are servers", "There are servers")
    (tmp_path / "slides.md").write_text(deck)
    with pytest.raises(schedule.Unplanned, match="'Serverless'"):
        schedule.slides(tmp_path / "slides.md")


def test_a_plan_is_in_the_order_of_the_slides():
    deck = [("Train", 2, "then notebook 1."), ("Ask", 2, "then notebook 4"), ("End", 1, "")]
    books = {number: (f"notebook {number}", 10) for number in "1456"}
    steps = schedule.plan(deck, books, "145", breaks=[5])
    assert [what for what, _ in steps] == [
        "slide: Train", "notebook 1", "break", "slide: Ask", "notebook 4", "notebook 5", "slide: End",
    ]  # fmt: skip


# --- slides and handout ------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered():
    if not shutil.which("npx"):
        pytest.skip("no npx here, which brings the slides' program: apt install npm")
    subprocess.run(["make", "slides"], cwd=ROOT, check=True, timeout=300)
    PICTURES.mkdir(exist_ok=True)


def url(name):
    return (ROOT / f"target/{name}.html").as_uri()


def test_nothing_is_loaded_from_elsewhere(rendered):
    for name in ("slides", "handout"):
        html = (ROOT / f"target/{name}.html").read_text()
        assert "<section" in html and not re.findall(r"""(?:src=|url\(|@import\s|<link[^>]+href=)["']?(?:https?:)?//[^"')]*""", html)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_each_slide_is_whole_and_readable(rendered, page, axe, screen, scheme):  # noqa: F811
    page.open(url("slides"), screen, scheme)
    requested = page.js("performance.getEntriesByType('resource').map((each) => each.name)")
    assert all(each.startswith("file:") for each in requested), requested
    for number, (title, *_) in enumerate(DECK, 1):
        page.driver.get(f"{url('slides')}#{number}")
        page.cdp("Page.captureScreenshot")
        shot = page.cdp("Page.captureScreenshot")["data"]
        (PICTURES / f"{screen}-{scheme}-{number:02}.png").write_bytes(base64.b64decode(shot))
        section = f"document.querySelectorAll('section[id]')[{number - 1}]"
        high, room, wide, width = page.js(f"(s => [s.scrollHeight, s.clientHeight, s.scrollWidth, s.clientWidth])({section})")
        assert high <= room and wide <= width, f"{title}: {high} of {room} px high, {wide} of {width} wide"
        broken = page.js(f"[...{section}.querySelectorAll('img')].filter((i) => !i.naturalWidth || !i.alt).map((i) => i.src)")
        assert broken == [], title
        page.driver.execute_script(axe)
        # The buttons that appear with the mouse are Marp's own.
        found = page.later("axe.run({ exclude: ['[data-bespoke-marp-osc]'] }, { resultTypes: ['violations'] })")
        problems = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
        assert problems == [], title
    # Marp hides all slides but one, and Chromium says what axe looked at there.
    assert [text for text in page.complaints() if "content-visibility" not in text] == []


def test_the_slides_measurements_are_the_readmes():
    def table(file, start):
        rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in open(ROOT / file) if line.startswith("|")]
        header = next(n for n, row in enumerate(rows) if row[0].startswith(start) and "iris_fn" in row)
        return {row[0]: dict(zip(rows[header], row)) for row in rows[header + 2 :] if len(row) == len(rows[header])}

    ours, theirs = table("teach/slides.md", "median"), table("README.md", "median")
    assert len(ours) == 3
    for name, row in ours.items():
        assert all(theirs[name][column] == number for column, number in list(row.items())[1:]), name


@pytest.mark.parametrize("name, pages", [("slides", len(DECK)), ("handout", 1)])
def test_it_prints_one_page_each(rendered, page, name, pages):  # noqa: F811
    page.open(url(name))
    pdf = base64.b64decode(page.cdp("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])
    (PICTURES / f"{name}.pdf").write_bytes(pdf)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == pages
    high, room = page.js("(s => [s.scrollHeight, s.clientHeight])(document.querySelector('section[id]'))")
    assert high <= room
