"""Which exercises of the notebooks are solved. `check` of the notebooks' library notes each right answer as a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def chapters() -> dict[str, list[str]]:
    """The title of each chapter, and its exercises."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        exercises = [cell["metadata"].get("workshop", {}).get("exercise") for cell in cells]
        found["".join(cells[0]["source"]).splitlines()[0].lstrip("# ")] = [name for name in exercises if name]
    return found


def main() -> int:
    folder = Path(os.environ.get("PROGRESS_DIR") or ROOT / "target/progress")
    solved = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    count = total = 0
    for title, names in chapters().items():
        done = [name for name in names if name in solved]
        count, total = count + len(done), total + len(names)
        print(f"{title:<42} {len(done)} of {len(names)}  {' '.join(done)}".rstrip())
    print(f"{count} of {total} exercises solved; a cell at the end of notebook 4 prints a certificate")
    return 0


if __name__ == "__main__":
    sys.exit(main())
