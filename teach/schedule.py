#!/usr/bin/env python3
"""What two hours and four hours hold: computed from the minutes in the slides' notes and the notebooks' metadata.

A slide's note begins with its minutes. One whose note says "then notebook 3" is followed by it, one that says "four hours
only" is left out of two. What is left of the time is for exercises and questions.

A notebook's `metadata.workshop.minutes.core` is what its core path takes. It may not be less than 200 words a minute, 9 seconds
a line of code, and `workshop.wait_minutes`, measured, in which its cells only run. Sections that begin with *Deeper*,
*Exercises* or *Quiz* do not count.

Exits with 1 when a plan is too long, or a notebook longer than it says.
"""

import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# (name, minutes, the notebooks that are in it, the minutes of each break)
PLANS = [("Two hours", 120, "01234", [5]), ("Four hours", 240, "012345678", [10, 10])]
WORDS_A_MINUTE, SECONDS_A_LINE = 200, 9
BESIDE = re.compile(r"^## (Deeper|Exercises|Quiz)", re.M)


class Unplanned(Exception):
    """What has no minutes; the sentence says where, and what to write."""


def slides(file):
    """[(title, minutes, note)] of a deck."""
    _, _, *deck = re.split(r"^---$", file.read_text(), flags=re.M)
    found = []
    for slide in deck:
        title = re.search(r"^# (.+)$", slide, re.M)[1]
        note = re.search(r"<!--\s+(\d+) minutes?\b(.*?)-->", slide, re.S)
        if not note:
            raise Unplanned(f"{file}: the slide {title!r} has no note that begins with its minutes: <!-- 2 minutes. … -->")
        found.append((title, int(note[1]), note[2]))
    return found


def core(notebook):
    """(words, lines of code) of a notebook's core path."""
    words = lines = 0
    beside = False
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            lines += 0 if beside else len([line for line in text.splitlines() if line.strip()])
            continue
        for section in re.split(r"^(?=## )", text, flags=re.M):
            beside = bool(BESIDE.match(section)) if section.startswith("## ") else beside
            words += 0 if beside else len(section.split())
    return words, lines


def notebooks(folder):
    """{number: (title, minutes)} of a folder's notebooks."""
    found = {}
    for file in sorted(folder.glob("0*.ipynb")):
        notebook = json.loads(file.read_text())
        workshop = notebook["metadata"].get("workshop", {})
        words, lines = core(notebook)
        needed = math.ceil(words / WORDS_A_MINUTE + lines * SECONDS_A_LINE / 60 + workshop.get("wait_minutes", 0))
        minutes = workshop.get("minutes", {}).get("core", 0)
        if minutes < needed:
            raise Unplanned(
                f"{file} takes {needed} minutes ({words} words and {lines} lines of code in its core path) and says"
                f" {minutes}: set workshop.minutes.core in its metadata, or shorten it"
            )
        title = "".join(notebook["cells"][0]["source"]).partition("\n")[0]
        found[file.name[1]] = (title.removeprefix("# "), minutes)
    return found


def plan(deck, books, wanted, breaks):
    """[(what, minutes)] in order. What no slide announces stands before the last one; breaks stand between notebooks."""
    wanted = [number for number in books if number in wanted]
    named = re.findall(r"then notebook (\d)", "".join(note for *_, note in deck))
    steps = []
    for n, (title, minutes, note) in enumerate(deck, 1):
        if n == len(deck):
            steps += [(number, *books[number]) for number in wanted if number not in named]
        steps.append((None, f"slide: {title}", minutes))
        steps += [(number, *books[number]) for number in wanted if f"then notebook {number}" in note]
    for n, minutes in enumerate(breaks, 1):
        number = wanted[n * len(wanted) // (len(breaks) + 1)]
        at = next(i for i, step in enumerate(steps) if step[0] == number)
        if f"then notebook {number}" in next((note for title, _, note in deck if steps[at - 1][1] == f"slide: {title}"), ""):
            at -= 1  # the slide that announces it comes after the break, too
        steps.insert(at, (None, "break", minutes))
    return [(what, minutes) for _, what, minutes in steps]


def main():
    deck, books = slides(ROOT / "teach/slides.md"), notebooks(ROOT / "notebooks")
    too_long = 0
    for name, limit, wanted, breaks in PLANS:
        shown = [slide for slide in deck if limit == PLANS[-1][1] or "four hours only" not in slide[2]]
        steps = plan(shown, books, wanted, breaks)
        used = sum(minutes for _, minutes in steps)
        print(f"{name}: {used} of {limit} minutes, {limit - used} left for exercises and questions")
        now = 0
        for what, minutes in steps:
            print(f"  {now // 60}:{now % 60:02}  {minutes:3}  {what}")
            now += minutes
        too_long += used > limit
    if too_long:
        sys.exit("A plan is too long: shorten a notebook or a slide, or take one out of PLANS in teach/schedule.py.")


if __name__ == "__main__":
    try:
        main()
    except Unplanned as error:
        sys.exit(str(error))
