#!/usr/bin/env python3
"""Run the notebooks from top to bottom without a browser, and say which cell fails, if one does.

Each notebook runs in a fresh `rust` kernel, the one that `make setup` puts beside this Python. What runs is
a copy (target/notebooks/NAME.ipynb), so git stays clean; it is written even when the run fails, so that you
can open it and look.

A cell fails the run when it does not compile, panics, has a failing `!command`, takes too long, ends the
kernel, prints more than 250,000 characters, or writes anything to stderr: a failed `?` shows only there.

Exit codes: 0 all is well; 1 a cell failed, or --check found a difference; 2 nothing could be run (a missing
file, no kernel); 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP. The kernel and all it started are ended each time.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `main`: a Ctrl-C during the imports prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import copy
import json
import logging
import os
import shutil
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

try:
    import nbformat
    from nbformat import NotebookNode

    from compare import ANSI, code_cells, differences, is_executed
    from session import KERNEL, CannotRun, Kernel, kernel_specs, last_lines
except ImportError as error:
    print(f"run.py: {sys.executable} lacks {error.name}: run `make setup`, then use .venv", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[2]
SLOW_CELL = 2.0  # seconds; what takes longer gets a line of its own
HEARTBEAT = 30.0  # seconds between two signs of life where there is no terminal to update
MESSAGE_LINES = 25


class Failed(Exception):
    """A notebook failed; the text is the report that the reader gets."""


@dataclass
class CellTime:
    """How long one code cell took; `index` counts the notebook's code cells from 1."""

    index: int
    seconds: float


@dataclass
class Report:
    """One notebook's entry in the summary."""

    name: str
    ok: bool = False
    seconds: float = 0.0
    cells: list[CellTime] = field(default_factory=list)


@dataclass
class Notebook:
    """A notebook as it was found, and the place for its executed copy."""

    source: Path
    copy: Path
    original: bytes
    committed: NotebookNode

    @property
    def name(self) -> str:
        """`01_train` for notebooks/01_train.ipynb."""
        return self.source.stem


class Progress:
    """Plain lines on stdout and, while a cell is slow, seconds that count up in place (on a terminal)."""

    def __init__(self) -> None:
        self.label, self.since, self.spoken = "", 0.0, 0.0

    def say(self, line: str) -> None:
        """Print one line."""
        self.wipe()
        print(line, flush=True)

    def wipe(self) -> None:
        """Remove the counting line, if there is one."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)

    def begin(self, label: str) -> None:
        """From now on, `label` is what runs."""
        self.label, self.since = label, time.monotonic()
        self.spoken = self.since

    def end(self, source: str = "") -> float:
        """Nothing runs now; a slow cell gets its line. Returns the seconds since `begin`."""
        label, self.label, seconds = self.label, "", time.monotonic() - self.since
        self.wipe()
        if source and seconds > SLOW_CELL:
            self.say(f"  {label:8} {seconds:6.1f} s  {source.strip().splitlines()[0][:80]}")
        return seconds

    async def tick(self) -> None:
        """Runs beside the kernel and shows that something is alive."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            line = f"  {self.label:8} {now - self.since:6.0f} s"
            if not self.label or now - self.since < SLOW_CELL:
                continue
            if sys.stdout.isatty():
                print(f"\r{line} …", end="", flush=True)
            elif now - self.spoken >= HEARTBEAT:
                self.spoken = now
                self.say(f"{line} so far")


class Runner:
    """Runs notebooks one after the other and collects what they report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.specs = kernel_specs()
        self.progress = Progress()
        self.merged: dict[str, Any] = {}
        self.reports: list[Report] = []
        self.signal: signal.Signals | None = None

    async def run(self, notebooks: list[Notebook]) -> int:
        """Run them all; returns the exit code. The summary is written in every case."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)  # nohup
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            loop.add_signal_handler(number, self.stop, number, task)
        ticker = asyncio.create_task(self.progress.tick())
        try:
            for notebook in notebooks if self.options.check else []:
                self.require_outputs(notebook)
            stale = [await self.run_notebook(notebook) for notebook in notebooks]
        except (Failed, asyncio.CancelledError) as failure:
            if self.signal:
                return 128 + self.signal
            complain(str(failure))
            return 1
        finally:
            ticker.cancel()
            self.write_summary()
        if any(stale):
            complain("next: run `make notebooks` and review the diff")
        elif self.options.summary:
            self.say_results()
        return int(any(stale))

    def stop(self, number: signal.Signals, task: asyncio.Task[int]) -> None:
        """What a signal does: cancel the run. Once: a second Ctrl-C does not disturb the cleaning up."""
        if self.signal is None:
            self.signal = number
            places = [report.name for report in self.reports[-1:]] + [self.progress.label]
            self.progress.say(f"stopped by {number.name} in {', '.join(filter(None, places))}")
            task.cancel()

    def require_outputs(self, notebook: Notebook) -> None:
        """--check needs something to compare with; that it is missing should not take minutes to find."""
        if not is_executed(notebook.committed):
            self.reports.append(Report(notebook.name))
            raise Failed(f"{notebook.name}: outputs are not committed: run `make notebooks`")

    async def run_notebook(self, notebook: Notebook) -> bool:
        """Run one notebook on its copy; returns whether --check finds its committed outputs stale."""
        report = Report(notebook.name)
        self.reports.append(report)
        self.progress.say(f"{notebook.name}  {notebook.source}")
        started = time.monotonic()
        fresh = fresh_copy(notebook.committed)
        kernel = Kernel(self.specs, notebook.copy.with_suffix(".kernel.log"))
        try:
            await self.run_cells(kernel, notebook, fresh, report)
        finally:
            self.progress.end()
            report.seconds = round(time.monotonic() - started, 3)
            try:
                await kernel.stop()
            finally:
                write_atomically(notebook.copy, as_bytes(fresh))
        stale = self.options.check and report_differences(notebook, fresh)
        if self.options.in_place:
            write_back(notebook, fresh)
        report.ok = not stale
        verdict = "stale" if stale else "ok"
        self.progress.say(f"{notebook.name}  {verdict}  {len(report.cells)} cells  {report.seconds:.1f} s")
        return stale

    async def run_cells(
        self, kernel: Kernel, notebook: Notebook, fresh: NotebookNode, report: Report
    ) -> None:
        """Start the kernel and run every code cell of `fresh`; raises `Failed` at the first that fails."""
        self.progress.begin("kernel")
        try:
            client = await kernel.start(fresh, notebook.source.parent.resolve(), self.options.timeout)
        except (RuntimeError, OSError) as error:
            raise Failed(
                f"{notebook.name}: the kernel did not start ({error})\n"
                f"  the end of its log, {kernel.log}:\n{clip(last_lines(kernel.log))}\n"
                "next: run `make setup`, then try again"
            ) from None
        index = 0
        for position, cell in enumerate(fresh.cells):
            index += cell.cell_type == "code"
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            self.progress.begin(f"cell {index}")
            trouble = await client.run_cell(cell, position, count=len(report.cells) + 1)
            trouble = trouble or self.merge(cell)
            if self.signal:  # nbclient takes our cancelling for a dead kernel
                raise asyncio.CancelledError
            report.cells.append(CellTime(index, round(self.progress.end(cell.source), 3)))
            if trouble:
                raise Failed(
                    f"{notebook.name}: cell {index} failed (code cells count from 1)\n{clip(cell.source)}\n"
                    f"  message:\n{clip(trouble)}\nnext: see the cells up to this one in {notebook.copy}"
                )

    def merge(self, cell: NotebookNode) -> str | None:
        """Merge the cell's JSON results into the summary; returns what is wrong with them, or None."""
        for output in cell.outputs:
            if "application/json" in output.get("data", {}):
                try:
                    merge_json(self.merged, output.data["application/json"])
                except ValueError as error:
                    return str(error)
        return None

    def write_summary(self) -> None:
        """Write what the notebooks reported, and how long each cell took, to --summary's file."""
        if self.options.summary:
            summary = self.merged | {"notebooks": [asdict(report) for report in self.reports]}
            text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
            write_atomically(self.options.summary, text.encode())

    def say_results(self) -> None:
        """What the notebooks reported, for people."""
        for key, value in self.merged.items():
            print(f"{key:<12}{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        print(f"{'written to':<12}{self.options.summary}")


def merge_json(merged: dict[str, Any], value: Any) -> None:
    """Add the keys of one `application/json` output to `merged`.

    Raises ValueError when it is not a JSON object, or sets a key that already has another value.
    """
    if isinstance(value, str):  # evcxr parses JSON, and passes on as a string what it cannot parse
        try:
            value = json.loads(value, parse_constant=refuse_constant)
        except ValueError as error:
            raise ValueError(f"its application/json output is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"its application/json output is not an object: {json.dumps(value)[:80]}")
    for key, new in value.items():
        if key == "notebooks":
            raise ValueError('its application/json output sets "notebooks", which run.py itself writes')
        if key in merged and merged[key] != new:
            raise ValueError(f'"{key}" is set twice: first {json.dumps(merged[key])}, now {json.dumps(new)}')
    merged.update(value)


def refuse_constant(name: str) -> None:
    """Python's json would read NaN and Infinity, and write them where other programs cannot read them."""
    raise ValueError(f"{name} is not JSON")


def report_differences(notebook: Notebook, fresh: NotebookNode) -> bool:
    """Print every cell whose committed outputs are stale; returns whether there is one."""
    found = list(differences(notebook.committed, fresh))
    for index, text in found:
        complain(f"{notebook.name}: cell {index} no longer shows what is committed\n{indent(text)}")
    return bool(found)


def fresh_copy(committed: NotebookNode) -> NotebookNode:
    """The notebook without outputs, and without what would differ after every run."""
    fresh = copy.deepcopy(committed)
    fresh.metadata.kernelspec = {"display_name": "Rust", "language": "rust", "name": KERNEL}
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
        cell.metadata.pop("execution", None)  # Jupyter's time stamps
    return fresh


def write_back(notebook: Notebook, fresh: NotebookNode) -> None:
    """--in-place: put the outputs into the notebook itself, unless somebody saved it while it ran."""
    if notebook.source.read_bytes() != notebook.original:
        raise Failed(
            f"{notebook.name}: {notebook.source} was changed while it ran, and is left as it is\n"
            f"next: run it again; the outputs of this run are in {notebook.copy}"
        )
    write_atomically(notebook.source, as_bytes(fresh))


def as_bytes(notebook: NotebookNode) -> bytes:
    """The notebook in the form in which Jupyter saves it."""
    return (nbformat.writes(notebook) + "\n").encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that nobody ever reads half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    if path.exists():
        shutil.copymode(path, temporary)
    temporary.replace(path)


def clip(text: str) -> str:
    """At most MESSAGE_LINES lines, indented and without colours."""
    lines = ANSI.sub("", text).strip("\n").splitlines()
    if len(lines) > MESSAGE_LINES:
        lines[MESSAGE_LINES:] = [f"… {len(lines) - MESSAGE_LINES} more lines"]
    return indent("\n".join(line[:400] for line in lines))


def indent(text: str) -> str:
    """Four spaces before each line."""
    return "\n".join("    " + line for line in text.splitlines())


def complain(text: str) -> None:
    """Say what is wrong, on stderr, after all progress so far."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def open_notebook(source: Path, folder: Path) -> Notebook:
    """Read and validate a notebook; raises `CannotRun` when it is not one."""
    try:
        original = source.read_bytes()
        committed = nbformat.reads(original.decode(), as_version=4)
        nbformat.validate(committed)
    except FileNotFoundError:
        raise CannotRun(f"there is no notebook {source}: check the path") from None
    except OSError as error:
        raise CannotRun(f"cannot read {source} ({error.strerror}): check the path") from None
    except Exception as error:  # not JSON, not UTF-8, not a notebook: nbformat has many ways to say so
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise CannotRun(f"{source} is not a valid notebook ({reason}): restore it from git") from None
    return Notebook(source, folder / f"{source.stem}.ipynb", original, committed)


def open_all(options: argparse.Namespace) -> list[Notebook]:
    """Find all that is wrong with the command line before the first, possibly long, run."""
    notebooks = [open_notebook(path, options.out) for path in options.notebooks]
    names = [notebook.name for notebook in notebooks]
    for notebook in notebooks:
        if names.count(notebook.name) > 1:
            raise CannotRun(f"two notebooks are called {notebook.name}: run them one at a time")
        if notebook.copy.resolve() == notebook.source.resolve():
            raise CannotRun(f"--out would overwrite {notebook.source}: give another folder")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.summary:
            options.summary.parent.mkdir(parents=True, exist_ok=True)
            options.summary.unlink(missing_ok=True)  # an old one must not be taken for this run's
    except OSError as error:
        raise CannotRun(f"cannot write to {error.filename} ({error.strerror}): give another place") from None
    return notebooks


def parse_arguments() -> argparse.Namespace:
    """The command line, with the timeout as a number."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add, choose = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="they run in this order")
    add("--out", type=Path, metavar="DIR", default=ROOT / "target" / "notebooks",
        help="where the executed copies go (default: target/notebooks)")  # fmt: skip
    choose("--in-place", action="store_true", help="also save the outputs in each notebook that passes")
    choose("--check", action="store_true", help="also fail if a notebook's committed outputs are stale")
    add("--summary", type=Path, metavar="FILE",
        help="write the JSON results of the notebooks' cells, and all times, as one JSON object; "
        "in it, as in all messages, a cell's index counts the notebook's code cells from 1")  # fmt: skip
    add("--timeout", metavar="SECONDS", default=os.environ.get("CELL_TIMEOUT") or "600",
        help="for each cell (default: the variable CELL_TIMEOUT, or 600)")  # fmt: skip
    options = parser.parse_args()
    if not options.timeout.isdecimal() or int(options.timeout) == 0:
        raise CannotRun(f"--timeout or CELL_TIMEOUT is {options.timeout!r}: give seconds, for example 600")
    options.timeout = int(options.timeout)
    return options


def main() -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # rustc's box drawing must not end a run in an old locale
    warnings.simplefilter("ignore")  # nbformat's and pyzmq's advice is not for the reader,
    logging.disable()  # and what the libraries log is said here in other words
    try:
        options = parse_arguments()
        return asyncio.run(Runner(options).run(open_all(options)))
    except CannotRun as error:
        complain(f"run.py: {error}")
        return 2
    except KeyboardInterrupt:
        print("stopped by SIGINT")
        return 130
    except BrokenPipeError:  # `run.py … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that went away
        complain(f"run.py: cannot go on ({error}): see to that and run it again")
        return 1


if __name__ == "__main__":
    sys.exit(main())
