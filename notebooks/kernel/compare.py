"""Are a notebook's committed outputs still what its code says? Comparison up to noise.

Two honest runs of one notebook differ a little: the last digits of a fit, a table's column widths, hashes,
timings. `run.py --check` uses this module to see through that noise and to report everything else.

What counts as noise:

- numbers within 1e-3 (relative) or 1.5e-3 (absolute); in SVG within 2.0, because there they are pixels;
- hexadecimal strings of 12 or more digits (hashes, account numbers) and UUIDs;
- colours, the number of spaces, and the length of a table's rules;
- in a cell tagged `varies` (timings, live values): every number with its unit, and all that is not stdout;
- in a cell tagged `log` (the output of a build or deploy tool): all text. Only the kinds of output count.
"""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from nbformat import NotebookNode

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
# Not after a dot: the digits of 0.123456789012 are a number's, not a hash's.
HEX = re.compile(r"(?<![0-9A-Za-z.])[0-9a-fA-F]{12,}(?![0-9A-Za-z])")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
# Rust prints a Duration as 980µs or 1.2ms as it fits, so the unit is part of what varies.
QUANTITY = re.compile(NUMBER.pattern + r"(?:\s?(?:[nuµμm]?s|[kKMG]?i?B)\b)?")
SVG_DATA = re.compile(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)")
DIFF_LINES, DIFF_WIDTH = 25, 110


@dataclass
class Outline:
    """What one cell shows: the text of each stream, and {MIME type: text} of each other output, in order."""

    streams: dict[str, str] = field(default_factory=dict)
    rich: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, cell: NotebookNode) -> Outline:
        """The outline of a code cell."""
        outline = cls()
        for output in cell.outputs:
            if output.output_type == "stream":
                outline.streams[output.name] = outline.streams.get(output.name, "") + output.text
            elif output.output_type == "error":
                outline.rich.append({"error": output.evalue})
            else:
                outline.rich.append({mime: as_text(data) for mime, data in output.data.items()})
        return outline

    def kinds(self) -> str:
        """Which outputs there are, without their content: `stdout + text/html`."""
        parts = sorted(self.streams) + [", ".join(sorted(data)) for data in self.rich]
        return " + ".join(parts) or "no output"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells in order: "cell 7" in every message is the seventh of these."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_executed(notebook: NotebookNode) -> bool:
    """Whether every code cell with a source has a number, and the numbers rise from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(notebook) if cell.source.strip()]
    return None not in counts and all(a < b for a, b in zip(counts, counts[1:]))


def differences(committed: NotebookNode, now: NotebookNode) -> Iterator[tuple[int, str]]:
    """(cell number, what differs) for each code cell whose outputs are not the same up to noise."""
    for index, (old, new) in enumerate(zip(code_cells(committed), code_cells(now)), start=1):
        found = cell_difference(old, new)
        if found:
            yield index, found


def cell_difference(committed: NotebookNode, now: NotebookNode) -> str | None:
    """What differs between two runs of one cell, as a short diff; None when it is only noise."""
    tags = committed.metadata.get("tags", [])
    old, new = Outline.of(committed), Outline.of(now)
    if old.kinds() != new.kinds():
        return f"committed: {old.kinds()}\nnow:       {new.kinds()}"
    if "log" in tags:
        return None
    varies = "varies" in tags
    pairs = [(name, text, new.streams[name]) for name, text in old.streams.items()]
    if not varies:
        for before, after in zip(old.rich, new.rich):
            pairs += [(mime, text, after[mime]) for mime, text in before.items()]
    reports = []
    for kind, before, after in pairs:
        pixels = kind == "image/svg+xml" or (kind == "text/html" and "<svg" in before)
        same = partial(same_text, tolerance=2.0 if pixels else 1.5e-3, any_number=varies)
        if not same(before, after):
            reports.append(short_diff(kind, before, after, same))
    return "\n".join(reports) or None


def same_text(a: str, b: str, tolerance: float = 1.5e-3, any_number: bool = False) -> bool:
    """Whether two texts are equal up to noise; with `any_number`, only the words have to match."""
    (words_a, numbers_a), (words_b, numbers_b) = skeleton(a, any_number), skeleton(b, any_number)
    return words_a == words_b and (
        any_number or all(is_close(x, y, tolerance) for x, y in zip(numbers_a, numbers_b))
    )


def is_close(x: float, y: float, tolerance: float) -> bool:
    """|x − y| ≤ max(tolerance, 1e-3 · max(|x|, |y|)); the equality lets two infinities (1e999) match."""
    return x == y or abs(x - y) <= max(tolerance, 1e-3 * max(abs(x), abs(y)))


def skeleton(text: str, any_number: bool = False) -> tuple[str, list[float]]:
    """The text with a # for each number, and the numbers. Masks what is noise in any cell."""
    text = HEX.sub("<hex>", UUID.sub("<uuid>", ANSI.sub("", text)))
    numbers = [] if any_number else [float(n) for n in NUMBER.findall(text)]
    text = (QUANTITY if any_number else NUMBER).sub("#", text)
    # A number that is one digit longer moves its neighbours and stretches the table around it.
    text = re.sub(r"([─═╌-])[─═╌-]+", r"\1", re.sub(r"\s+", " ", text))
    return text.strip(), numbers


def short_diff(kind: str, before: str, after: str, same: Callable[[str, str], bool]) -> str:
    """A unified diff of at most DIFF_LINES lines that leaves out the lines which differ only by noise."""
    old, new = ANSI.sub("", before).splitlines(), ANSI.sub("", after).splitlines()
    if len(old) == len(new):
        new = [a if same(a, b) else b for a, b in zip(old, new)]
    lines = list(difflib.unified_diff(old, new, f"{kind}, committed", f"{kind}, now", n=1, lineterm=""))
    if len(lines) > DIFF_LINES:
        lines[DIFF_LINES:] = [f"… {len(lines) - DIFF_LINES} more lines"]
    return "\n".join(line if len(line) <= DIFF_WIDTH else line[:DIFF_WIDTH] + "…" for line in lines)


def as_text(data: object) -> str:
    """A MIME bundle's value as text: JSON comes parsed, everything else is a string already. A figure that is
    embedded in it is unpacked, so that its numbers can be compared."""
    if isinstance(data, str):
        return SVG_DATA.sub(lambda found: base64.b64decode(found[1]).decode(errors="replace"), data)
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False)
