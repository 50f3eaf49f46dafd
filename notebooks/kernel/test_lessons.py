"""What the chapters promise their readers: nothing is used before it is explained, cells are short, each exercise has
hints, a check and a solution, and the solutions are right."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from test_notebooks import ROOT, WORK, cloud  # noqa: F401  (a fixture)

CHAPTERS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SOLUTIONS = ROOT / "notebooks/solutions"
README = (ROOT / "README.md").read_text()

# Rust that a reader of Python may not know. The cell that first uses one lists it in its metadata, `introduces`, and
# the text before it explains it.
CONSTRUCTS = {
    "let": r"\blet\b",
    "mut": r"\bmut\b",
    "println": r"\bprintln!",
    "fn": r"\bfn\b",
    "as": r"\bas\b",
    "const": r"\bconst\b",
    "if": r"\bif\b",
    "string": r"\bString\b",
    "static": r"&'static",
    "borrow": r"&\w",
    "clone": r"\.clone\(\)",
    "format": r"\bformat!",
    "vec": r"\bVec<|\bvec!",
    "slice": r"&\[",
    "range": r"\w\.\.=?[\w\]]",
    "closure": r"\|[\w\s,&():*]+\|",
    "for": r"\bfor\b",
    "iterator": r"\biter\(\)|\binto_iter\(\)",
    "deref": r"(?<![\w:] )\*\w",
    "turbofish": r"::<",
    "tuple": r": \(\w+, |\|\(",
    "fold": r"\.fold\(",
    "option": r"\bOption\b|\bSome\(|\bNone\b|\bunwrap_or\(|\.expect\(",
    "result": r"\bResult<|\bOk\(|\bErr\(",
    "question": r"\)\?",
    "box_error": r"\bBox<dyn",
    "collect_result": r"collect::<\w*(Result|Fitting)",
    "assert": r"\bassert(_eq)?!",
    "enum": r"\benum\b",
    "match": r"\bmatch\b",
    "matches": r"\bmatches!",
    "into": r"\.into\(\)",
    "struct": r"\bstruct\b",
    "impl": r"\bimpl\b",
    "derive": r"#\[derive",
    "async": r"\basync\b|\.await",
    "loop": r"\bloop\b",
    "move": r"\bmove\b",
    "spawn": r"\bspawn\(",
    "use": r"^use\b",
    "type": r"^type\b",
    "arc": r"\bArc\b",
    "json": r"\bjson!",
    "df": r"\bdf!",
    "command": r"^!",
    "while_let": r"\bwhile let\b",
    "let_else": r"\belse \{ (continue|return|panic)",
    "env": r"^:env",
    "fn_type": r": fn\(",
}

# A cell above twelve lines, by its first line, and why it cannot be shorter.
LONG = {
    "async fn listen(mut events: EventLoop, mqtt: AsyncClient, topic: String, to: Sender<Packet>) {": (
        "the event loop is the lesson of its page, and each arm of it matters"
    ),
}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def parts(notebook: NotebookNode) -> Iterator[tuple[NotebookNode, str, str]]:
    """Each cell, or its parts where headings divide it, with the heading above and the text."""
    heading = ""
    for cell in notebook.cells:
        for part in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE) if cell.cell_type == "markdown" else [cell.source]:
            if cell.cell_type == "markdown" and part.startswith("## "):
                heading = part[3:].partition("\n")[0]
            yield cell, heading, part


def workshop(cell: NotebookNode, key: str) -> object:
    return cell.metadata.get("workshop", {}).get(key)


def bare(source: str) -> str:
    """Code without comments and texts, in which words mean nothing."""
    if source.startswith("!"):
        return "!"
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', re.sub(r"(?m)(^|\s)//.*$", "", source))


def test_nothing_is_used_before_it_is_introduced() -> None:
    known, early = set(), []
    for path in CHAPTERS:
        for cell in read(path).cells:
            known |= set(workshop(cell, "introduces") or [])
            if cell.cell_type == "code":
                used = {name for name, text in CONSTRUCTS.items() if re.search(text, bare(cell.source), re.MULTILINE)}
                early += [f"{path.stem}: {name} in `{cell.source.splitlines()[0]}`" for name in sorted(used - known)]
    assert early == []
    assert known == set(CONSTRUCTS), known ^ set(CONSTRUCTS)


def test_what_a_cell_introduces_it_also_shows() -> None:
    for path in CHAPTERS:
        for cell in read(path).cells:
            for name in workshop(cell, "introduces") or []:
                code = bare(cell.source) if cell.cell_type == "code" else ""
                shown = re.search(CONSTRUCTS[name], code, re.MULTILINE)
                assert shown or cell.cell_type == "markdown", f"{path.stem}: {name} is not in\n{cell.source}"


def test_cells_are_short_and_the_long_ones_have_a_reason() -> None:
    long = set()
    for path in CHAPTERS:
        for cell, heading, _ in parts(read(path)):
            if cell.cell_type == "code" and not heading.startswith("Deeper"):
                lines = cell.source.splitlines()
                long |= {lines[0]} if len(lines) > 12 else set()
    assert long == set(LONG) and len(LONG) <= 5


def test_chapter_0_is_small_steps() -> None:
    shown = [cell for cell in read(CHAPTERS[0]).cells if cell.cell_type == "code" and not workshop(cell, "exercise")]
    assert len(shown) <= 15
    assert [cell.source for cell in shown if len(cell.source.splitlines()) > 6] == []


def test_a_cell_imports_or_works() -> None:
    mixed = []
    for path in CHAPTERS[1:]:
        for cell in read(path).cells:
            kinds = {line.startswith("use ") for line in cell.source.splitlines() if line and cell.cell_type == "code"}
            mixed += [f"{path.stem}: {cell.source}"] if len(kinds) > 1 else []
    assert mixed == []


def test_each_chapter_has_five_exercises_with_hints_and_solutions_and_three_questions() -> None:
    for number, path in enumerate(CHAPTERS):
        notebook = read(path)
        names = [f"{number}.{i}" for i in range(1, 6)]
        exercises = {name: cell for cell in notebook.cells if (name := workshop(cell, "exercise"))}
        assert list(exercises) == names, path.stem
        for name, cell in exercises.items():
            lines = cell.source.splitlines()
            assert all(line.startswith("//") for line in lines), f"{name}: an empty cell must run"
            assert lines[0] == f"// {name}" and lines[-1].startswith(f'// check("{name}", &')
            before = notebook.cells[notebook.cells.index(cell) - 1].source
            assert f"**{name} " in before and before.count("<summary>Hint") == 2, name
        solved = {workshop(cell, "exercise") for cell in read(SOLUTIONS / path.name).cells if cell.cell_type == "code"}
        assert solved == set(names) - {"3.5"}, path.stem  # its solution is a patch of the function
        quiz = "".join(text for _, heading, text in parts(notebook) if heading == "Quiz")
        assert quiz.count("<summary>Answer") == 3, path.stem


def test_progress_lists_what_is_solved(tmp_path: Path) -> None:
    def lines(folder: Path) -> list[str]:
        command, env = [sys.executable, "notebooks/kernel/progress.py"], os.environ | {"PROGRESS_DIR": str(folder)}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.splitlines()

    for name in ("1.2", "4.5", "no exercise"):
        (tmp_path / name).touch()
    assert [line.split() for line in lines(tmp_path) if line.startswith("1 ")][0][-4:] == ["1", "of", "5", "1.2"]
    assert lines(tmp_path)[-1].startswith("2 of 45 ") and lines(tmp_path / "none")[-1].startswith("0 of 45 ")


def test_the_patch_of_exercise_3_5_fits_the_function() -> None:
    patch = SOLUTIONS / "certainty.patch"
    done = subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere_and_figures_have_a_text() -> None:
    for path in [*CHAPTERS, *SOLUTIONS.glob("*.ipynb")]:
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                for link in re.findall(r"\]\(([^)]+)\)", cell.source):
                    assert link.startswith("http") or (path.parent / link).exists(), f"{path.stem}: {link}"
                assert not re.search(r"!\[\]", cell.source), f"{path.stem}: a picture without a text"
            else:
                images = re.findall(r"<img[^>]*>", json.dumps(cell.outputs).replace('\\"', '"'))
                assert all(re.search(r'alt="[^"]{20,}"', image) for image in images), f"{path.stem}: {cell.source}"


def minutes(notebook: NotebookNode) -> dict[str, float]:
    """Reading at 200 words a minute and nine seconds for a line of code. Exercises and quiz are not counted."""
    total = {"core": 0.0, "deeper": 0.0}
    for cell, heading, text in parts(notebook):
        if heading not in ("Exercises", "Quiz"):
            lines = [line for line in text.splitlines() if line.strip()]
            taken = len(text.split()) / 200 if cell.cell_type == "markdown" else len(lines) * 9 / 60
            total["deeper" if heading.startswith("Deeper") else "core"] += taken
    return total


def test_the_minutes_of_a_chapter_are_what_its_text_its_code_and_its_waits_take() -> None:
    core = 0.0
    for path in CHAPTERS:
        notebook = read(path)
        settings = notebook.metadata.workshop
        waits, found = settings.get("wait_minutes", 0), minutes(notebook)
        assert settings.minutes == {"core": math.ceil(found["core"] + waits), "deeper": math.ceil(found["deeper"])}, path.stem
        assert re.search(rf"\(notebooks/{path.name}\) .* \| {settings.minutes.core} \|\n", README), path.stem
        core += settings.minutes["core"] if int(path.stem[:2]) <= 4 else 0
    assert core <= 120


def test_the_solutions_are_right(cloud: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """Each chapter with its solutions in the empty cells; without FULL only chapter 0 and the walkthrough."""
    chapters = CHAPTERS if os.environ.get("FULL") else CHAPTERS[:5]
    expected, progress = set(), tmp_path / "progress"
    for path in chapters:
        notebook = read(path)
        answers = {workshop(cell, "exercise"): cell.source for cell in read(SOLUTIONS / path.name).cells}
        for cell in notebook.cells:
            if (name := workshop(cell, "exercise")) in answers and name:
                cell.source, expected = answers[name], expected | {name}
        nbformat.write(notebook, tmp_path / path.name)
    command = [sys.executable, "notebooks/kernel/run.py", "--out", WORK / "solved"]
    runs = [tmp_path / path.name for path in chapters]
    subprocess.run([*command, *runs], cwd=ROOT, env=cloud | {"PROGRESS_DIR": str(progress)}, timeout=1800, check=True)
    assert {file.name for file in progress.iterdir()} == expected
