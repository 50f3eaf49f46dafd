"""Tests of run.py, as a user meets it: whole runs of small notebooks.

What a failing cell says is in test_kernel.py. Whole runs need the kernel from `make setup`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from run import ROOT, Runner, clip
from test_outputs import JSON_MIME, cell, rich

JSON_CELL = 'println!("EVCXR_BEGIN_CONTENT application/json\\n{}\\nEVCXR_END_CONTENT", %s);'


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": 1, "b": {"c": [0.1]}}, ""),
        ({"a": 2}, '"a" is set twice: first 1, now 2'),
        ('{"x": NaN}', "not a JSON object"),  # evcxr passes on as text what it cannot parse
        ([1], "not a JSON object: [1]"),
        ({"notebooks": []}, '"notebooks" is set twice'),
    ],
)
def test_json_results_are_merged(value: object, complaint: str) -> None:
    run = SimpleNamespace(results={"a": 1, "notebooks": [{}]})
    found = Runner.merge(run, cell(rich(value, JSON_MIME)))
    assert complaint in found and bool(complaint) == bool(found)
    assert complaint or run.results["b"] == {"c": [0.1]}


def test_long_messages_are_cut_and_lose_their_colours() -> None:
    lines = clip("\x1b[91mline\x1b[0m\n" * 100).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("    line", "    … 75 more lines", 26)


# ---- whole runs -----------------------------------------------------------------------------------------


class Workbench:
    """A directory of small notebooks, and a run.py that leaves a mark on each process it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self.prefix = folder, uuid.uuid4().hex, Path(sys.prefix)
        self.program: list[object] = [ROOT / "notebooks/kernel/run.py"]
        self.started: list[subprocess.Popen[str]] = []

    def notebook(self, name: str, *cells: nbformat.NotebookNode | str) -> Path:
        """Write a notebook; a string is a code cell."""
        made = [new_code_cell(c) if isinstance(c, str) else c for c in cells]
        path = self.folder / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=made), path)
        return path

    def stand_in(self, *argv: str) -> None:
        """From now on, run.py's Python is in a .venv whose kernel is the command `argv`."""
        self.prefix = self.folder / "venv"
        spec = self.prefix / "share/jupyter/kernels/iris-workshop/kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": "Rust", "language": "rust"}))
        for part in ("bin", "lib", "pyvenv.cfg"):
            (self.prefix / part).symlink_to(Path(sys.prefix, part))

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start run.py."""
        command = [self.prefix / "bin/python", *self.program, "--out", "out", *arguments]
        self.started.append(subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.folder, env=os.environ | {"RUN_PY_TEST": self.mark},
        ))  # fmt: skip
        return self.started[-1]

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for run.py's end: its exit code, stdout and stderr. Whatever the outcome, nothing stays."""
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        deadline = time.monotonic() + 2
        while self.marked() and time.monotonic() < deadline:  # killed, and not yet taken down by the system
            time.sleep(0.05)
        assert self.marked() == []
        return process.returncode, out, err

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Run run.py to its end."""
        return self.finish(self.start(*arguments))

    def marked(self) -> list[str]:
        """The living processes that carry our mark in their environment (a zombie has none)."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                found += [process.name] if self.mark.encode() in (process / "environ").read_bytes() else []
            except OSError:
                pass
        return found

    def summary(self) -> dict:
        """What --summary s.json wrote."""
        return json.loads((self.folder / "s.json").read_text())

    def executed(self, name: str) -> nbformat.NotebookNode:
        """The executed copy."""
        return nbformat.read(self.folder / "out" / f"{name}.ipynb", as_version=4)

    def wait_for(self, path: Path) -> None:
        """Until the file is there."""
        deadline = time.monotonic() + 150
        while not path.exists():
            assert time.monotonic() < deadline, f"waited in vain for {path}"
            time.sleep(0.05)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    yield (bench := Workbench(tmp_path))
    for process in bench.started:  # only after a failed test does one still run
        process.terminate()
        process.communicate()


def test_a_good_notebook_is_run_and_saved(bench: Workbench) -> None:
    path = bench.notebook(
        "good",
        new_markdown_cell("# Good"),
        'let loss: f64 = 0.25;\nprintln!("loss {loss}");',
        "",
        "!(sleep 300 >/dev/null 2>&1 &)",  # what a cell leaves in the background must not stay
        JSON_CELL % '"{\\"loss\\": 0.25}"',
        'for i in 0..5000 { println!("line {i}"); }\n1 + 1',
        "std::thread::sleep(std::time::Duration::from_millis(2100));",
    )
    ids = [c.id for c in nbformat.read(path, as_version=4).cells]
    code, out, err = bench.run(path, "--in-place", "--summary", "s.json")
    assert (code, err) == (0, "")
    assert "  cell 6 " in out and "good  ok  6 cells" in out and "loss        0.25\n" in out
    (report,) = bench.summary()["notebooks"]
    assert bench.summary()["loss"] == 0.25 and (report["name"], report["ok"]) == ("good", True)
    assert [c["index"] for c in report["cells"]] == [1, 2, 3, 4, 5, 6] and report["cells"][5]["seconds"] > 2.1

    saved = nbformat.read(path, as_version=4)
    assert [c.id for c in saved.cells] == ids
    assert [c.execution_count for c in saved.cells[1:]] == [1, None, 2, 3, 4, 5]
    stdout, result = saved.cells[5].outputs
    assert stdout.text.endswith("line 4999\n") and (result.data["text/plain"], result.execution_count) == ("2", 4)
    assert (bench.folder / "out" / "good.ipynb").read_bytes() == path.read_bytes()


def test_notebooks_have_fresh_kernels_and_a_failure_stops_the_run(bench: Workbench) -> None:
    one = bench.notebook("one", "let a: i32 = 1;", JSON_CELL % '"{\\"key\\": 1}"')
    two = bench.notebook("two", new_markdown_cell("# 2"), "let b: i32 = 1;", "let a: i32 = a + b;", 'panic!("not me")')
    original = two.read_bytes()
    none = bench.notebook("none", new_markdown_cell("no code"))
    code, out, err = bench.run("--in-place", "--summary", "s.json", none, one, two, bench.notebook("three", "1"))
    assert code == 1 and "none  ok  0 cells" in out and "one  ok  2 cells" in out
    assert err.startswith("two: cell 2 failed (code cells count from 1)\n    let a: i32 = a + b;\n  message:\n")
    assert "cannot find value `a`" in err and "\x1b" not in err and "not me" not in err
    assert err.endswith("next: see the cells up to this one in out/two.ipynb\n")
    assert bench.summary()["key"] == 1
    assert [(r["name"], r["ok"], len(r["cells"])) for r in bench.summary()["notebooks"]] == [
        ("none", True, 0),
        ("one", True, 2),
        ("two", False, 2),
    ]
    assert bench.executed("two").cells[2].outputs[0].output_type == "error" and two.read_bytes() == original
    assert not (bench.folder / "out" / "three.ipynb").exists()


def test_ctrl_c_ends_the_run_the_kernel_and_its_children(bench: Workbench) -> None:
    running = bench.folder / "running"
    process = bench.start(bench.notebook("endless", f'std::fs::write("{running}", "")?; loop {{}}'), "--summary", "s.json")
    bench.wait_for(running)
    assert len(bench.marked()) >= 3  # run.py, evcxr, evcxr's child
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)  # an impatient second one changes nothing
    code, out, err = bench.finish(process)
    assert (code, err, out.splitlines()[-1]) == (130, "", "stopped by SIGINT in endless, cell 1")
    assert bench.summary()["notebooks"][0]["ok"] is False
    assert bench.executed("endless").cells[0].outputs == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_kernel_starts_leaves_nothing(bench: Workbench, number: signal.Signals) -> None:
    bench.stand_in("sh", "-c", f"cd {bench.folder}; echo $EVCXR_TMPDIR >tmp; mv tmp running; sleep 300 & sleep 300")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` would hand on that it is ignored
    process = bench.start(bench.notebook("early", "1"))
    signal.signal(signal.SIGHUP, before)
    bench.wait_for(bench.folder / "running")
    scratch = Path((bench.folder / "running").read_text().strip())
    process.send_signal(number)
    code, out, err = bench.finish(process)
    assert (code, err, out.splitlines()[-1]) == (128 + number, "", f"stopped by {number.name} in early, kernel")
    assert scratch.parent == ROOT / "target/kernels" and not scratch.exists()


SLOW_END = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT / "notebooks/kernel")!r})
import run
end = run.end_group
async def end_group(provisioner):
    print("ending", flush=True)
    await asyncio.sleep(1)
    await end(provisioner)
run.end_group = end_group
sys.exit(run.main())
"""


def test_ctrl_c_after_the_last_cell_changes_nothing(bench: Workbench) -> None:
    bench.program = ["-c", SLOW_END]
    process = bench.start(bench.notebook("good", "1"), "--summary", "s.json")
    while process.stdout.readline() != "ending\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, err = bench.finish(process)
    assert (code, err, bench.summary()["notebooks"][0]["ok"]) == (0, "", True)


def test_a_kernel_that_dies_at_its_start_shows_its_last_words(bench: Workbench) -> None:
    bench.stand_in("sh", "-c", "sleep 300 & echo no rule to make target >&2; exit 2")
    code, _, err = bench.run(bench.notebook("a", "1"))
    assert code == 1
    assert "the kernel did not start" in err and "no rule to make target" in err and "next: run `make setup`" in err
    assert bench.executed("a").cells[0].outputs == []


def test_what_cannot_be_run_is_one_sentence(bench: Workbench) -> None:
    bench.stand_in("sh")
    good, text, other = bench.notebook("good", "1"), bench.folder / "text.ipynb", bench.folder / "other.ipynb"
    text.write_text("not JSON")
    other.write_text("{}")
    again = bench.folder / "again" / good.name
    again.parent.mkdir()
    again.write_bytes(good.read_bytes())
    wrong = {
        "gone.ipynb is no notebook (FileNotFoundError": ["gone.ipynb"],
        "text.ipynb is no notebook (NotJSONError": [text],
        "other.ipynb is no notebook (": [other],
        "Not a directory: 'text.ipynb/x'": [good, "--out", "text.ipynb/x"],
        "argument --timeout: 'soon' is not a whole number": [good, "--timeout", "soon"],
        "argument --timeout: '0' is not a whole number": [good, "--timeout", "0"],
        f"the copy of {good} would overwrite {good}": [good, "--out", bench.folder],
        f"the copy of {again} would overwrite {bench.folder}/out/good.ipynb": [good, again],
        f"the copy of {again} would overwrite {good}": [again, "--out", bench.folder],
    }
    started = [bench.start(*arguments) for arguments in wrong.values()]
    for process, sentence in zip(started, wrong):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, "") and sentence in err.splitlines()[-1]
    assert not list(bench.folder.glob("out/*"))
    spec = next(bench.prefix.rglob("kernel.json"))
    for damage in (lambda: spec.write_text("{"), spec.unlink):
        damage()
        code, _, err = bench.run(good)
        assert code == 2 and err.startswith("no usable kernel `iris-workshop` in ") and err.endswith("run `make setup`\n")
