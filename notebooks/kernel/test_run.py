"""Tests of run.py: its pure parts, and, as a user would meet it, whole runs of small notebooks.

`.venv/bin/python -m pytest notebooks/kernel/test_run.py`; the whole runs need the kernel from `make setup`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from compare import cell_difference, is_executed, same_text  # noqa: E402
from run import clip, merge_json  # noqa: E402
from session import tidy_outputs  # noqa: E402

KERNEL_JSON = Path(sys.prefix, "share", "jupyter", "kernels", "rust", "kernel.json")
needs_kernel = pytest.mark.skipif(not KERNEL_JSON.exists(), reason="no `rust` kernel: run `make setup`")
JSON_CELL = 'println!("EVCXR_BEGIN_CONTENT application/json\\n{}\\nEVCXR_END_CONTENT", %s);'

# ---- text comparison ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("committed", "now"),
    [
        ("accuracy 0.9733", "accuracy 0.9741"),
        ("loss 1.2e-9", "loss 8.9e-10"),
        ("12345.0 rows/s", "12350.0 rows/s"),
        ("-0.000 |", "0.000 |"),
        ("model 5f2b9c0a7d31 stored", "model e00111222333 stored"),
        ("models/" + "0a" * 32 + ".json", "models/" + "1f" * 32 + ".json"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-0000-0000-0000-000000000000"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("│  9.9996 │\n├────┤", "│ 10.0 │\n├──────┤"),
    ],
)
def test_noise_is_not_a_difference(committed: str, now: str) -> None:
    assert same_text(committed, now)


@pytest.mark.parametrize(
    ("committed", "now"),
    [
        ("accuracy 0.97", "accuracy 0.98"),
        ("accuracy 0.971234567890123", "accuracy 0.911234567890123"),
        ("setosa 50", "setosa 49"),
        ("setosa 1.0", "virginica 1.0"),
        ("1 2 3", "1 2"),
        ("model 5f2b9c", "model 5f2b9d"),
    ],
)
def test_a_changed_result_is_a_difference(committed: str, now: str) -> None:
    assert not same_text(committed, now)


def test_pixels_may_move_by_two() -> None:
    assert same_text("M10,20L30,40", "M11.5,20L30,41", tolerance=2.0)
    assert not same_text("M10,20L30,40", "M13,20L30,40", tolerance=2.0)


def test_where_numbers_vary_their_unit_does_too_but_not_the_words() -> None:
    assert same_text("answer after 980µs", "answer after 1.2ms", any_number=True)
    assert not same_text("answer after 980µs", "no answer after 1.2ms", any_number=True)


# ---- cell comparison ------------------------------------------------------------------------------------


def cell(*outputs: nbformat.NotebookNode | str, tags: tuple[str, ...] = ()) -> nbformat.NotebookNode:
    """A code cell with these outputs; a string is text on stdout."""
    made = [new_output("stream", name="stdout", text=o) if isinstance(o, str) else o for o in outputs]
    return new_code_cell("", outputs=made, metadata={"tags": list(tags)}, execution_count=1)


def shown(**data: object) -> nbformat.NotebookNode:
    """A rich output; `text_html="…"` stands for the MIME type text/html."""
    named = {name.replace("_", "/", 1): value for name, value in data.items()}
    return new_output("execute_result", data=named)


def test_stdout_in_pieces_equals_stdout_in_one() -> None:
    assert cell_difference(cell("a\n", "b\n"), cell("a\nb\n")) is None


def test_the_diff_shows_the_line_that_changed_and_no_noise() -> None:
    found = cell_difference(cell("rows 150\nloss 0.1234\nok\n"), cell("rows 149\nloss 0.1235\nok\n"))
    assert "-rows 150" in found and "+rows 149" in found
    assert "0.1235" not in found


def test_other_kinds_of_output_are_a_difference_under_every_tag() -> None:
    for tags in ((), ("varies",), ("log",)):
        found = cell_difference(cell("a", tags=tags), cell("a", shown(text_html="<b>"), tags=tags))
        assert found == "committed: stdout\nnow:       stdout + text/html"


def test_rich_text_and_json_are_compared() -> None:
    assert cell_difference(cell(shown(text_html="<td>1.0")), cell(shown(text_html="<td>1.0001"))) is None
    assert cell_difference(cell(shown(text_html="<td>1.0")), cell(shown(text_html="<td>2.0")))
    assert cell_difference(cell(shown(application_json={"a": 1})), cell(shown(application_json={"a": 2})))


def test_svg_in_html_is_compared_in_pixels() -> None:
    old, new = "<svg><circle cx='10.0'/></svg>", "<svg><circle cx='11.0'/></svg>"
    assert cell_difference(cell(shown(text_html=old)), cell(shown(text_html=new))) is None


def test_a_cell_that_varies_keeps_its_words_only() -> None:
    old = cell("took 9 ms", shown(text_html="x"), tags=("varies",))
    new = cell("took 7 s", shown(text_html="y"))
    assert cell_difference(old, new) is None
    assert cell_difference(old, cell("failed after 9 ms", shown(text_html="x")))


def test_a_log_may_say_anything() -> None:
    assert cell_difference(cell("Compiling", tags=("log",)), cell("Fresh")) is None


def test_outputs_count_as_committed_only_if_run_from_top_to_bottom() -> None:
    def notebook(*counts: int | None) -> nbformat.NotebookNode:
        executed = [new_code_cell("1", execution_count=n) for n in counts]
        return new_notebook(cells=[*executed, new_code_cell("")])

    assert is_executed(notebook(2, 3, 7))
    assert not is_executed(notebook(1, None))
    assert not is_executed(notebook(2, 1))


# ---- results and messages -------------------------------------------------------------------------------


def test_json_results_merge_parsed_or_as_text() -> None:
    merged: dict = {}
    merge_json(merged, {"a": 1, "b": {"c": [0.1]}})
    merge_json(merged, '{"a": 1, "d": null}')
    assert merged == {"a": 1, "b": {"c": [0.1]}, "d": None}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"a": 2}, '"a" is set twice: first 1, now 2'),
        ("{", "not valid JSON"),
        ('{"x": NaN}', "NaN is not JSON"),
        ([1], "not an object: [1]"),
        ({"notebooks": []}, "run.py itself writes"),
    ],
)
def test_results_that_cannot_be_merged_are_named(value: object, complaint: str) -> None:
    merged = {"a": 1}
    with pytest.raises(ValueError) as error:
        merge_json(merged, value)
    assert complaint in str(error.value)
    assert merged == {"a": 1}


def test_outputs_are_tidied_to_one_entry_per_stream_and_the_cells_number() -> None:
    messy = cell("a\n", new_output("execute_result", data={"text/plain": "2"}, execution_count=9), "b\n")
    stdout, result = tidy_outputs(messy)
    assert (stdout.text, result.execution_count) == ("a\nb\n", 1)


def test_long_messages_are_cut_and_lose_their_colours() -> None:
    lines = clip("\x1b[91mline\x1b[0m\n" * 100).splitlines()
    assert lines[0] == "    line"
    assert lines[-1] == "    … 75 more lines" and len(lines) == 26


# ---- whole runs -----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a finished run.py left."""

    code: int
    stdout: str
    stderr: str
    left: list[str]  # processes that should not be there


class Workbench:
    """A directory of small notebooks, and a run.py that leaves a mark on each process it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, f"RUN_PY_TEST={uuid.uuid4().hex}"

    def notebook(self, name: str, *cells: nbformat.NotebookNode | str, **metadata: object) -> Path:
        """Write a notebook; a string is a code cell."""
        made = [new_code_cell(c) if isinstance(c, str) else c for c in cells]
        path = self.folder / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=made, metadata=metadata), path)
        return path

    def start(self, *arguments: object, prefix: Path | None = None) -> subprocess.Popen[str]:
        """Start run.py; `prefix` stands for the virtual environment in which it looks for the kernel."""
        script = [str(HERE / "run.py")]
        if prefix:
            code = "import runpy, sys; sys.prefix = sys.argv.pop(1); sys.argv.pop(0); "
            code += "sys.path.insert(0, %r); runpy.run_path(sys.argv[0], run_name='__main__')"
            script = ["-c", code % str(HERE), str(prefix), *script]
        name, value = self.mark.split("=")
        return subprocess.Popen(
            [sys.executable, *script, "--out", str(self.folder / "out"), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env=os.environ | {name: value},
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str]) -> Outcome:
        """Wait for run.py's end, and look at once for what it left."""
        stdout, stderr = process.communicate(timeout=180)
        assert "Traceback" not in stderr
        return Outcome(process.returncode, stdout, stderr, self.marked())

    def run(self, *arguments: object, prefix: Path | None = None) -> Outcome:
        """Run run.py to its end; whatever the outcome, nothing may be left running."""
        outcome = self.finish(self.start(*arguments, prefix=prefix))
        assert outcome.left == []
        return outcome

    def marked(self) -> list[str]:
        """The living processes that carry our mark in their environment."""
        if Path("/proc/self/environ").exists():
            folders = Path("/proc").glob("[0-9]*")
            return [folder.name for folder in folders if self.has_mark(folder)]
        listing = subprocess.run(["ps", "axeww", "-o", "pid,stat,command"], capture_output=True, text=True)
        return [line for line in listing.stdout.splitlines() if self.mark in line]

    def has_mark(self, process: Path) -> bool:
        """Whether a /proc directory is that of a marked process; a zombie has no environment."""
        try:
            return self.mark.encode() in (process / "environ").read_bytes()
        except OSError:
            return False

    def executed(self, name: str) -> nbformat.NotebookNode:
        """The executed copy."""
        return nbformat.read(self.folder / "out" / f"{name}.ipynb", as_version=4)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@needs_kernel
@pytest.mark.parametrize(
    ("name", "source", "complaints"),
    [
        ("compile", 'let a: i32 = "x";', ["mismatched types", "expected `i32`"]),
        ("panic", 'panic!("no petals");', ["no petals", "Subprocess terminated"]),
        ("question", 'let n: i32 = "x".parse::<i32>()?;', ["invalid digit found in string", "stderr"]),
        ("stderr", 'eprintln!("only a warning");', ["only a warning", "stderr"]),
        ("command", "!false", ["Shell command failed with exit code 1"]),
        ("timeout", "loop {}", ["it took longer than 3 s"]),
        ("chatter", 'loop { println!("again and again and again"); }', ["printed more than 250,000"]),
        ("dies", "!kill -9 $PPID", ["the kernel died"]),
        ("json", JSON_CELL % '"{\\"a\\": NaN}"', ["not valid JSON"]),
    ],
)
def test_a_failing_cell_is_named_with_its_source_and_message(
    bench: Workbench, name: str, source: str, complaints: list[str]
) -> None:
    excused = new_code_cell(source, metadata={"tags": ["raises-exception"]})
    before = [new_markdown_cell("# 1"), new_raw_cell("raw"), "1;"]
    path = bench.notebook(name, *before, excused, 'panic!("not me")')
    original = path.read_bytes()
    limit = 3 if name == "timeout" else 60
    outcome = bench.run("--in-place", "--summary", "s.json", "--timeout", limit, path)
    assert outcome.code == 1
    assert f"{name}: cell 2 failed" in outcome.stderr
    assert f"    {source}" in outcome.stderr
    assert f"out/{name}.ipynb" in outcome.stderr
    assert all(complaint in outcome.stderr for complaint in complaints)
    assert "not me" not in outcome.stderr and "\x1b" not in outcome.stderr
    assert path.read_bytes() == original
    assert bench.executed(name).cells[2].execution_count == 1
    (report,) = json.loads((bench.folder / "s.json").read_text())["notebooks"]
    assert (report["name"], report["ok"]) == (name, False)
    assert [cell["index"] for cell in report["cells"]] == [1, 2]


@needs_kernel
def test_a_good_notebook_is_run_saved_and_checked(bench: Workbench) -> None:
    path = bench.notebook(
        "good",
        new_markdown_cell("# Good"),
        'let loss: f64 = 0.25;\nprintln!("loss {loss}");',
        "",
        '!(sleep 300 >/dev/null 2>&1 &)',  # what a cell leaves in the background must not stay
        JSON_CELL % '"{\\"loss\\": 0.25}"',
        'for i in 0..5000 { println!("line {i}"); }',
        'std::thread::sleep(std::time::Duration::from_millis(2100));',
        kernelspec={"name": "python3", "display_name": "Python"},
    )
    untouched = path.read_bytes()
    outcome = bench.run(path, "--summary", "sub/s.json")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert path.read_bytes() == untouched
    assert "  cell 6 " in outcome.stdout and "good  ok  5 cells" in outcome.stdout
    summary = json.loads((bench.folder / "sub" / "s.json").read_text())
    assert summary["loss"] == 0.25
    assert summary["notebooks"][0]["ok"] is True
    assert [cell["index"] for cell in summary["notebooks"][0]["cells"]] == [1, 3, 4, 5, 6]

    outcome = bench.run(path, "--check")
    assert outcome.code == 1 and "good: outputs are not committed: run `make notebooks`" in outcome.stderr

    assert bench.run(path, "--in-place").code == 0
    saved = nbformat.read(path, as_version=4)
    assert saved.metadata.kernelspec.name == "rust" and saved.metadata.language_info.name == "Rust"
    assert [c.execution_count for c in saved.cells if c.cell_type == "code"] == [1, None, 2, 3, 4, 5]
    assert saved.cells[1].outputs[0].text == "loss 0.25\n"
    assert saved.cells[5].outputs[0].text.endswith("line 4999\n")
    assert [c.id for c in saved.cells] == [c["id"] for c in json.loads(untouched)["cells"]]
    assert not any("execution" in c.metadata for c in saved.cells)

    assert bench.run(path, "--check").code == 0
    saved.cells[1].outputs[0].text = "loss 0.50\n"
    saved.cells[5].outputs = []
    nbformat.write(saved, path)
    outcome = bench.run(path, "--check", "--summary", "s.json")
    assert outcome.code == 1
    assert "good: cell 1 no longer shows what is committed" in outcome.stderr
    assert "-loss 0.50" in outcome.stderr and "+loss 0.25" in outcome.stderr
    assert "good: cell 5 no longer" in outcome.stderr and "committed: no output" in outcome.stderr
    assert "next: run `make notebooks` and review the diff" in outcome.stderr
    assert json.loads((bench.folder / "s.json").read_text())["notebooks"][0]["ok"] is False


@needs_kernel
def test_notebooks_have_fresh_kernels_and_a_failure_stops_the_run(bench: Workbench) -> None:
    empty = bench.notebook("empty", new_markdown_cell("nothing to run"))
    one = bench.notebook("one", "let a: i32 = 1;", JSON_CELL % '"{\\"key\\": 1}"')
    two = bench.notebook("two", "let a: i32 = a + 1;")
    three = bench.notebook("three", "1")
    outcome = bench.run(empty, one, two, three, "--summary", "s.json")
    assert outcome.code == 1
    assert "two: cell 1 failed" in outcome.stderr and "cannot find value `a`" in outcome.stderr
    summary = json.loads((bench.folder / "s.json").read_text())
    verdicts = {report["name"]: report["ok"] for report in summary["notebooks"]}
    assert verdicts == {"empty": True, "one": True, "two": False}
    assert summary["key"] == 1
    assert not (bench.folder / "out" / "three.ipynb").exists()


@needs_kernel
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_the_kernel_and_its_children(bench: Workbench, number: signal.Signals) -> None:
    running = bench.folder / "running"
    endless = bench.notebook("endless", f'std::fs::write("{running}", "")?; loop {{}}', "1")
    process = bench.start(endless, "--summary", "s.json")
    wait_for(running.exists)
    assert len(bench.marked()) >= 3  # run.py, evcxr, evcxr's child
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(number)  # an impatient second one changes nothing
    outcome = bench.finish(process)
    assert outcome.left == []
    assert outcome.code == 128 + number and outcome.stderr == ""
    assert outcome.stdout.splitlines()[-1] == f"stopped by {number.name} in endless, cell 1"
    assert json.loads((bench.folder / "s.json").read_text())["notebooks"][0]["ok"] is False
    assert bench.executed("endless").cells[0].outputs == []


@needs_kernel
def test_ctrl_c_while_the_kernel_starts_leaves_nothing(bench: Workbench) -> None:
    process = bench.start(bench.notebook("early", "1"))
    wait_for(lambda: len(bench.marked()) >= 2)
    process.send_signal(signal.SIGINT)
    outcome = bench.finish(process)
    assert (outcome.code, outcome.left) == (130, [])


def wait_for(condition: Callable[[], object], limit: float = 60) -> None:
    """Poll until `condition()` holds; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def environment(folder: Path, *argv: str) -> Path:
    """A stand-in for .venv whose `rust` kernel is the command `argv`."""
    spec = folder / "venv" / "share" / "jupyter" / "kernels" / "rust" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "Rust", "language": "rust"}))
    return folder / "venv"


def test_a_kernel_that_dies_at_its_start_shows_its_last_words(bench: Workbench) -> None:
    prefix = environment(bench.folder, "sh", "-c", "sleep 300 & echo no rule to make target >&2; exit 2")
    outcome = bench.run(bench.notebook("a", "1"), prefix=prefix)
    assert outcome.code == 1
    assert "a: the kernel did not start" in outcome.stderr and "no rule to make target" in outcome.stderr
    assert "next: run `make setup`" in outcome.stderr
    assert bench.executed("a").cells[0].outputs == []


def test_without_a_kernel_the_next_step_is_make_setup(bench: Workbench) -> None:
    path = bench.notebook("a", "1")
    missing = bench.run(path, prefix=bench.folder / "nowhere")
    assert missing.code == 2
    assert missing.stderr.startswith("run.py: there is no kernel `rust` in ")
    assert "run `make setup`" in missing.stderr
    prefix = environment(bench.folder, "/nowhere/evcxr_jupyter")
    gone = bench.run(path, prefix=prefix)
    assert gone.code == 2 and "/nowhere/evcxr_jupyter is not there: run `make setup`" in gone.stderr
    next(prefix.rglob("kernel.json")).write_text("{")
    broken = bench.run(path, prefix=prefix)
    assert broken.code == 2 and "kernel.json cannot be used" in broken.stderr


def test_a_wrong_command_line_is_one_sentence(bench: Workbench) -> None:
    prefix = environment(bench.folder, "sh")
    good = bench.notebook("good", "1")
    text, other, folder = bench.folder / "text.ipynb", bench.folder / "other.ipynb", bench.folder / "out"
    text.write_text("not JSON")
    other.write_text("{}")
    (bench.folder / "file").write_text("")
    wrong = [
        (["gone.ipynb"], "there is no notebook gone.ipynb: check the path"),
        ([text], "text.ipynb is not a valid notebook"),
        ([other], "other.ipynb is not a valid notebook"),
        ([bench.folder], f"cannot read {bench.folder}"),
        ([good, good], "two notebooks are called good"),
        ([good, "--out", bench.folder], "--out would overwrite"),
        ([good, "--out", "file/x"], "cannot write to file/x"),
        ([good, "--summary", "file/x"], "cannot write to file"),
        ([good, "--timeout", "soon"], "--timeout or CELL_TIMEOUT is 'soon'"),
        ([good, "--timeout", "0"], "--timeout or CELL_TIMEOUT is '0'"),
    ]
    started = [bench.start(*arguments, prefix=prefix) for arguments, _ in wrong]
    for process, (_, sentence) in zip(started, wrong):
        outcome = bench.finish(process)
        assert (outcome.code, outcome.stdout) == (2, "")
        assert outcome.stderr.startswith("run.py: ") and outcome.stderr.count("\n") == 1
        assert sentence in outcome.stderr
    assert not folder.exists() or not list(folder.iterdir())
