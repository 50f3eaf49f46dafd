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

from nbformat import NotebookNode

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
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
