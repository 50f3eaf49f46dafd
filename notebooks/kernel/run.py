"""Run the notebooks from top to bottom without a browser, and say which cell fails, if one does.

Each runs in a fresh `iris-workshop` kernel, the one that `make setup` installs with this Python. What runs is a copy
(target/notebooks/NAME.ipynb), so git stays clean; it is written even when the run fails.

A cell fails the run when it does not compile, panics, has a failing `!command`, takes too long, ends the
kernel, prints more than 250,000 characters, or writes anything to stderr: a failed `?` shows only there.

Exit codes: 0 all is well; 1 a cell failed; 2 nothing could be run (a missing file, no kernel); 130 Ctrl-C;
143 SIGTERM; 129 SIGHUP. The kernel and all it started are ended each time.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `run` takes over: a Ctrl-C during the imports prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import json
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

# jsonschema would import it to check web addresses, for longer than all else takes; no notebook needs that check.
sys.modules["rfc3987_syntax"] = None

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "iris-workshop"
SLOW_CELL = 2.0  # seconds; what takes longer gets a line of its own
HEARTBEAT = 30.0  # seconds without a line, after which one says how long the cell has run
QUIET = 0.05  # seconds of silence after which a finished cell has nothing more to say
MOST_TEXT = 250_000  # characters a cell may print: far more than anybody reads
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours


class Failed(Exception):
    """What a run ends with; the text says where, why, and the next step."""


def kernel_specs() -> KernelSpecManager:
    """The kernels of this Python, no others."""
    folder = Path(sys.prefix, "share", "jupyter", "kernels")
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    try:
        specs.get_kernel_spec(KERNEL)
        return specs
    except Exception as error:  # not there, not JSON, a wrong type: all have the same remedy
        raise Failed(f"no usable kernel `{KERNEL}` in {folder} ({error}): run `make setup`") from None


class Session(NotebookClient):
    """A kernel, and the client that runs a notebook's cells in it."""

    def __init__(self, notebook: NotebookNode, specs: KernelSpecManager, timeout: int, log: Path) -> None:
        """`timeout` is each cell's, in seconds; `log` gets what the kernel says itself (`Compiling …`)."""
        super().__init__(
            notebook, AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs), timeout=timeout,
            startup_timeout=600,  # it starts in 5 s, but a loaded laptop may take far longer
            # nbclient would drop what it could not read within 4 s of a cell's end, and say nothing.
            iopub_timeout=timeout, raise_on_iopub_timeout=True,
            # No excuses: a tag in a notebook must not turn a failure into a success, or skip a cell.
            force_raise_errors=True, skip_cells_with_tag="",
            record_timing=False, coalesce_streams=True, on_cell_executed=self.read_late_output,
        )  # fmt: skip
        self.log_file, self.printed = log, 0

    def start(self, folder: Path) -> None:
        """Begin to start the kernel; `starting` ends when it answers."""
        self.stack = AsyncExitStack()
        self.starting = asyncio.create_task(self.stack.enter_async_context(self.kernel(folder)))

    async def close(self) -> None:
        """End the kernel, also one that is still starting."""
        with suppress(asyncio.CancelledError, Failed):
            await self.starting
        await self.stack.aclose()

    @asynccontextmanager
    async def kernel(self, folder: Path) -> AsyncIterator[None]:
        """The kernel, started in `folder`; nothing of it is left at the end of the block."""
        manager, kernels = self.km, ROOT / "target" / "kernels"
        kernels.mkdir(parents=True, exist_ok=True)
        # evcxr compiles in a folder that it removes itself, but not when it is killed.
        with TemporaryDirectory(dir=kernels, ignore_cleanup_errors=True) as tmp, self.log_file.open("wb") as log:
            env = os.environ | {"EVCXR_TMPDIR": tmp}
            try:
                await self.async_start_new_kernel(cwd=str(folder), env=env, stdout=log, stderr=log)
                await self.async_start_new_kernel_client()
            except (RuntimeError, OSError) as error:
                words = f"the kernel did not start ({error})\n{self.last_words()}"
                raise Failed(f"{words}\nnext: run `make setup`, then try again") from None
            else:
                yield
            finally:
                await end_group(manager.provisioner)
                if self.km:
                    await self._async_cleanup_kernel()

    async def run_cell(self, cell: NotebookNode) -> str:
        """Run a code cell; returns what is wrong with it, or nothing. Text on stderr alone is wrong, too: evcxr
        shows a failed `?` there and continues with the next cell."""
        self.printed, trouble = 0, []
        try:
            await self.async_execute_cell(cell, self.nb.cells.index(cell), self.code_cells_executed + 1)
        except CellTimeoutError:
            trouble.append(f"it took longer than {self.timeout} s (--timeout or CELL_TIMEOUT sets the limit)")
        except DeadKernelError:
            trouble.append(f"the kernel died\n{self.last_words()}")
        except CellExecutionError:
            trouble.append("the kernel reports an error:")  # its text is among the outputs
        if self.printed > MOST_TEXT:
            trouble = [f"it printed more than {MOST_TEXT:,} characters: print less, or write to a file"]
        trouble += ["\n".join(o.traceback) or o.evalue for o in cell.outputs if o.output_type == "error"]
        if stderr := "".join(o.text for o in cell.outputs if o.get("name") == "stderr"):
            trouble.append(f"it wrote to stderr:\n{stderr}")
        return "\n".join(trouble)

    async def read_late_output(self, cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        """Read on until the kernel is silent. evcxr sends stdout and stderr from a thread of its own, so a
        cell's last lines, and the text of a failed `?`, may come after the message that says it is done."""
        with suppress(Empty):
            while self.printed <= MOST_TEXT:
                message = await self.kc.iopub_channel.get_msg(timeout=QUIET)
                of_cell = message["parent_header"].get("msg_id") == execute_reply["parent_header"]["msg_id"]
                if of_cell and message["msg_type"] == "stream":
                    self.process_message(message, cell, cell_index)
        cell.outputs.sort(key=lambda output: output.output_type != "stream")  # the order is chance otherwise

    def output(self, outs: list[NotebookNode], msg: dict[str, Any], *others: Any) -> NotebookNode | None:
        """Keep one output. A cell that prints without end is ended here: evcxr queues what it prints, so
        waiting for the timeout costs gigabytes."""
        self.printed += len(msg["content"].get("text", ""))
        if self.printed > MOST_TEXT:
            self.task_poll_for_reply.cancel()  # as nbclient itself does when the kernel has died
            return None
        msg["content"]["execution_count"] = self.code_cells_executed  # evcxr begins to count at 2
        return super().output(outs, msg, *others)

    def last_words(self) -> str:
        """The end of the kernel's log."""
        return f"{self.log_file} ends with:\n{self.log_file.read_text(errors='replace')[-1000:]}"


async def end_group(provisioner: Any) -> None:
    """SIGKILL to the kernel's process group (evcxr, its child, rustc, what cells left in the background) until
    nobody is left in it, half a second at most: zombies stay longer where nobody collects them, and are harmless. Even a
    healthy kernel is not asked first: it has nothing to save. A server in a session of its own lives on."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says EPERM when only zombies are left
        for _ in range(50 if provisioner and provisioner.pgid else 0):
            os.killpg(provisioner.pgid, signal.SIGKILL)
            provisioner.process and provisioner.process.poll()
            await asyncio.sleep(0.01)


class Runner:
    """Runs notebooks one after the other, says how far it is, and collects what they report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.specs = options, kernel_specs()
        self.results: dict[str, Any] = {"notebooks": []}  # the summary
        self.label, self.since, self.spoken = "", 0.0, 0.0  # what runs, since when; when there was a line
        self.signal: signal.Signals | None = None
        self.ending = False  # all has been run; what is left takes half a second, and no signal is to break it off
        self.closing: list[asyncio.Task[None]] = []  # sessions whose kernels are being ended: the next one need not wait

    async def run(self, notebooks: dict[Path, bytes]) -> int:
        """Run them all; returns the exit code. The summary is written in every case."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int, _: object) -> None:  # once: a second Ctrl-C does not disturb the cleaning up
            if not (self.signal or self.ending or loop.is_closed()):
                self.signal = signal.Signals(number)
                loop.call_soon_threadsafe(task.cancel)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, stop)
        ticker, coming = asyncio.create_task(self.tick()), list(notebooks.items())
        self.following = self.prepare(coming)
        try:
            for _ in notebooks:
                await self.run_notebook(*self.following, coming)
        except asyncio.CancelledError:
            self.say(f"stopped by {self.signal.name} in {self.results['notebooks'][-1]['name']}, {self.label}")
            return 128 + self.signal
        finally:
            self.ending = True
            ticker.cancel()
            if self.following:  # begun, and now of no use
                self.following[0].starting.cancel()
                self.close(self.following[0])
            await asyncio.gather(*self.closing)
            if self.options.summary:
                write(self.options.summary, json.dumps(self.results, indent=1))
        if self.options.summary:
            for key, value in (self.results | {"written to": str(self.options.summary)}).items():
                if key != "notebooks":
                    print(f"{key:<12}{value if isinstance(value, str) else json.dumps(value)}")
        return 0

    def say(self, line: str, end: str = "\n") -> None:
        """Print one line; on a terminal, in the place of the seconds that count."""
        self.spoken = time.monotonic()
        print("\r\x1b[K" * sys.stdout.isatty(), end="", flush=True)
        print(line, end=end, flush=True)

    async def tick(self) -> None:
        """Show that a slow cell is alive: seconds that count on a terminal, a line now and then elsewhere."""
        while True:
            await asyncio.sleep(0.5)
            line = f"  {self.label:8} {time.monotonic() - self.since:6.0f} s"
            if sys.stdout.isatty():
                self.say(f"{line} …", end="")
            elif time.monotonic() - self.spoken > HEARTBEAT:
                self.say(f"{line} so far")

    def prepare(self, coming: list[tuple[Path, bytes]]) -> tuple[Session, Path, bytes] | None:
        """Begin to start the kernel of the next notebook, if there is one: that takes seconds on a core that has
        nothing else to do while the notebook before it runs."""
        if not coming:
            return None
        source, original = coming.pop(0)
        log = (self.options.out / source.name).with_suffix(".kernel.log")
        session = Session(nbformat.reads(original, as_version=4), self.specs, self.options.timeout, log)
        session.start(source.parent.resolve())
        return session, source, original

    def close(self, session: Session) -> None:
        """Begin to end a session's kernel."""
        self.closing.append(asyncio.create_task(session.close()))

    async def run_notebook(
        self, session: Session, source: Path, original: bytes, coming: list[tuple[Path, bytes]]
    ) -> None:
        """Run one notebook on its copy; raises `Failed` when a cell fails."""
        name, copy, started, notebook = source.stem, self.options.out / source.name, time.monotonic(), session.nb
        report = {"name": name, "ok": False, "seconds": 0.0, "cells": []}
        self.results["notebooks"].append(report)
        self.label, self.since = "kernel", started
        self.say(f"{name}  {source}")
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in cells:
            cell.outputs, cell.execution_count = [], None
        try:
            await session.starting
            self.following = self.prepare(coming)
            for index, cell in enumerate(cells, start=1):
                self.label, self.since = f"cell {index}", time.monotonic()
                trouble = await session.run_cell(cell) or self.merge(cell)
                if self.signal:  # nbclient takes our cancelling for a dead kernel
                    raise asyncio.CancelledError
                seconds = time.monotonic() - self.since
                report["cells"].append({"index": index, "seconds": round(seconds, 3)})
                if seconds > SLOW_CELL:
                    self.say(f"  {self.label:8} {seconds:6.1f} s  {cell.source.strip().splitlines()[0][:80]}")
                if trouble:
                    where = f"{name}: cell {index} failed (code cells count from 1)\n{clip(cell.source)}"
                    hint = f"next: see the cells up to this one in {copy}"
                    raise Failed(f"{where}\n  message:\n{clip(trouble)}\n{hint}")
        finally:
            self.close(session)
            self.say("", end="")
            report["seconds"] = round(time.monotonic() - started, 3)
            write(copy, nbformat.writes(notebook))
        if self.options.in_place:
            if source.read_bytes() != original:
                raise Failed(f"{source} was changed while it ran, and is left as it is\nnext: run it again")
            write(source, nbformat.writes(notebook))
        report["ok"] = True
        self.say(f"{name}  ok  {len(report['cells'])} cells  {report['seconds']:.1f} s")

    def merge(self, cell: NotebookNode) -> str:
        """Add the cell's JSON results to the summary; returns what is wrong with them, or nothing."""
        for output in cell.outputs:
            value = output.get("data", {}).get("application/json", {})
            if not isinstance(value, dict):  # evcxr passes on as a string what it cannot parse
                return f"its application/json output is not a JSON object: {value!r:.80}"
            for key, new in value.items():
                if self.results.setdefault(key, new) != new:
                    return f'"{key}" is set twice: first {self.results[key]!r:.80}, now {new!r:.80}'
        return ""


def read(source: Path) -> bytes:
    """The bytes of a valid notebook; raises `Failed` when it is not one."""
    try:
        content = source.read_bytes()
        nbformat.validate(nbformat.reads(content, as_version=4))
        return content
    except Exception as error:  # no file, not JSON, not a notebook: nbformat has many ways to say so
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise Failed(f"{source} is no notebook ({reason}): check the path, or restore it from git") from None


def check_copies(sources: list[Path], out: Path) -> None:
    """Raises `Failed` when a copy would take the place of a notebook, or of another one's copy. A kernel's log lies beside
    each copy."""
    taken = {source.resolve() for source in sources}
    for source in sources:
        copy = (out / source.name).resolve()
        if copy in taken or (copy.exists() and not copy.with_suffix(".kernel.log").exists()):
            raise Failed(f"the copy of {source} would overwrite {copy}: name another folder with --out")
        taken.add(copy)


def seconds(text: str) -> int:
    """A cell's time limit, as argparse reads it."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds, 1 or more (CELL_TIMEOUT sets it too)")
    return int(text)


def write(path: Path, text: str) -> None:
    """Write beside `path` and rename, so that nobody ever reads half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def clip(text: str) -> str:
    """At most 25 lines, indented and without colours."""
    lines = ANSI.sub("", text).strip("\n").splitlines()
    if len(lines) > 25:
        lines[25:] = [f"… {len(lines) - 25} more lines"]
    return "\n".join("    " + line[:200] for line in lines)


def main() -> int:
    """Run the command line; returns the exit code."""
    logging.disable()  # what the libraries would log is reported here
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="they run in this order")
    add("--out", type=Path, default=ROOT / "target/notebooks", help="folder of the copies (target/notebooks)")
    add("--in-place", action="store_true", help="also save the outputs in each notebook that passes")
    add("--summary", type=Path, help="write the cells' JSON results, and all times, to this file")
    add("--timeout", type=seconds, default=os.environ.get("CELL_TIMEOUT") or "600", help="seconds for each cell")
    options, code = parser.parse_args(), 2
    try:
        notebooks = {source: read(source) for source in options.notebooks}
        check_copies(options.notebooks, options.out)
        options.out.mkdir(parents=True, exist_ok=True)
        runner, code = Runner(options), 1
        return asyncio.run(runner.run(notebooks))
    except (Failed, OSError) as error:  # OSError: a place that cannot be written, a full disk
        print(error, file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
