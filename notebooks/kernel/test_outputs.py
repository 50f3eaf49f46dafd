"""Are a notebook's committed outputs still what its code says? What differs between two honest runs is noise:

- the last digits of a number: 1e-3 of it, and below a millionth all of it; in SVG two pixels;
- hexadecimal strings of 12 or more digits (hashes, account numbers) and UUIDs;
- colours, the number of spaces, and the length of a table's rules;
- in a cell tagged `varies` (timings, live values): every number with its unit, and all that is not stdout;
- in a cell tagged `log` (the output of a build or deploy tool): all text. Only the kinds of output count.

nbval and nbdime do not know that 0.12345 and 0.12346 are equal.
"""

from __future__ import annotations

import base64
import difflib
import json
import math
import re
from functools import partial

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from run import ANSI

UUID = r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
# Not after a dot: the digits of 0.123456789012 are a number's, not a hash's.
ID = re.compile(UUID + r"|(?<![0-9A-Za-z.])[0-9a-fA-F]{12,}(?![0-9A-Za-z])")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
# Rust prints a Duration as 980µs or 1.2ms as it fits, so the unit is part of what varies.
QUANTITY = re.compile(NUMBER.pattern + r"(?:\s?(?:[nuµμm]?s|[kKMG]?i?B)\b)?")
SVG_DATA = re.compile(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)")


def difference(committed: NotebookNode, now: NotebookNode) -> str:
    """What differs between two runs of one cell, as a short diff; empty when it is only noise."""
    tags = committed.metadata.get("tags", [])
    old, new = texts(committed), texts(now)
    if sorted(old) != sorted(new):
        return "committed: {}\nnow:       {}".format(*(" + ".join(sorted(x)) or "no output" for x in (old, new)))
    report: list[str] = []
    for kind, text in old.items():
        same = partial(same_text, pixels="<svg" in text, any_number="varies" in tags)
        if "log" in tags or ("varies" in tags and kind != "stdout") or same(text, new[kind]):
            continue
        a, b = text.splitlines(), new[kind].splitlines()
        if len(a) == len(b):  # lines that differ only by noise are not in the diff
            b = [x if same(x, y) else y for x, y in zip(a, b)]
        report += difflib.unified_diff(a, b, f"{kind}, committed", f"{kind}, now", n=1, lineterm="")
    return "\n".join(report)


def texts(cell: NotebookNode) -> dict[str, str]:
    """What a cell shows, by stream or MIME type. Figures are unpacked, so that their numbers can be compared,
    and each element of HTML or SVG gets a line of its own, for the diff."""
    found: dict[str, str] = {}
    for output in cell.outputs:
        for kind, data in (output.get("data") or {output.get("name", "error"): output.get("text", "")}).items():
            text = data if isinstance(data, str) else json.dumps(data, sort_keys=True, indent=1)
            text = SVG_DATA.sub(lambda svg: base64.b64decode(svg[1]).decode(errors="replace"), text)
            found[kind] = found.get(kind, "") + ANSI.sub("", text).replace("><", ">\n<")
    return found


def same_text(a: str, b: str, pixels: bool = False, any_number: bool = False) -> bool:
    """Whether two texts are equal up to noise; with `any_number`, only the words have to match."""
    a, b = ID.sub("<id>", a), ID.sub("<id>", b)
    # A number that is one digit longer moves its neighbours and stretches the table around it.
    words = [" ".join((QUANTITY if any_number else NUMBER).sub("#", text).split()) for text in (a, b)]
    words = [re.sub(r"([─═╌-])[─═╌-]+", r"\1", text) for text in words]
    numbers = [[] if any_number else map(float, NUMBER.findall(text)) for text in (a, b)]
    close = partial(math.isclose, rel_tol=1e-3, abs_tol=2.0 if pixels else 1e-6)
    return words[0] == words[1] and all(map(close, *numbers))


JSON_MIME, SVG = "application/json", "<svg><circle cx='%s'/></svg>"


@pytest.mark.parametrize(
    ("committed", "now", "same"),
    [
        ("accuracy 0.9733", "accuracy 0.9741", True),
        ("accuracy 0.97", "accuracy 0.98", False),
        ("accuracy 0.971234567890123", "accuracy 0.911234567890123", False),
        ("p50 1.2e-3", "p50 1.3e-3", False),  # small, and a result
        ("price 0.0007", "price 0.0008", False),
        ("gradient 8e-7", "gradient 9e-7", True),  # zero, as far as anybody can tell
        ("gradient 8e-7", "gradient 8e-6", False),
        ("-0.000 |", "0.000 |", True),
        ("12345.0 rows/s", "12350.0 rows/s", True),
        ("apple 50", "apple 49", False),
        ("apple 1.0", "pear 1.0", False),
        ("1 2 3", "1 2", False),
        ("model 5f2b9c", "model 5f2b9d", False),
        ("model 5f2b9c0a7d31 stored", "model e00111222333 stored", True),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-0000-0000-0000-000000000000", True),
        ("│  9.9996 │\n├────┤", "│ 10.0 │\n├──────┤", True),
    ],
)
def test_noise_is_told_from_a_changed_result(committed: str, now: str, same: bool) -> None:
    assert same_text(committed, now) is same


def cell(*outputs: NotebookNode | str, tag: str = "plain") -> NotebookNode:
    """A code cell with these outputs; a string is text on stdout."""
    made = [new_output("stream", name="stdout", text=o) if isinstance(o, str) else o for o in outputs]
    return new_code_cell("", outputs=made, metadata={"tags": [tag]})


def rich(data: object, mime: str = "text/html") -> NotebookNode:
    """An output that is not text on stdout."""
    return new_output("execute_result", data={mime: data})


@pytest.mark.parametrize(
    ("committed", "now", "report"),
    [
        (cell("a\n", "b\n"), cell("a\nb\n"), ""),
        (cell("\x1b[31mred\x1b[0m"), cell("red"), ""),
        (cell(rich("<td>1.0")), cell(rich("<td>1.0001")), ""),
        (cell(rich("<td>1.0")), cell(rich("<td>2.0")), "-<td>1.0\n+<td>2.0"),
        (cell(rich({"a": 1}, JSON_MIME)), cell(rich({"a": 2}, JSON_MIME)), '- "a": 1\n+ "a": 2'),
        (cell(rich(SVG % "10.0")), cell(rich(SVG % "11.9")), ""),  # pixels
        (cell(rich(SVG % "10.0")), cell(rich(SVG % "13.0")), "-<circle cx='10.0'/>\n+<circle cx='13.0'/>"),
        (cell("answer after 980µs", rich("x"), tag="varies"), cell("answer after 1.2ms", rich("y")), ""),
        (cell("answer after 980µs", tag="varies"), cell("no answer after 980µs"), "+no answer"),
        (cell("Compiling", tag="log"), cell("Fresh"), ""),
        (cell("a", tag="log"), cell("a", rich("")), "committed: stdout\nnow:       stdout + text/html"),
        (cell(), cell("a", tag="varies"), "committed: no output\nnow:       stdout"),
    ],
)
def test_two_runs_of_a_cell_are_compared(
    committed: NotebookNode, now: NotebookNode, report: str
) -> None:
    found = difference(committed, now)
    assert report in found and bool(report) == bool(found)


def test_the_diff_shows_the_line_that_changed_and_no_noise() -> None:
    found = difference(cell("rows 150\nloss 0.1234\nok\n"), cell("rows 149\nloss 0.1235\nok\n"))
    assert "-rows 150\n+rows 149" in found and "0.1235" not in found
