"""One fresh kernel for one notebook: start it, run cells in it, and leave nothing of it behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from zmq import ZMQError

KERNEL = "rust"
START_LIMIT = 600  # seconds; it starts in 5, but a loaded laptop may take far longer
QUIET = 0.05  # seconds of silence after which a finished cell has nothing more to say
MOST_TEXT = 250_000  # characters a cell may print: far more than anybody reads


class CannotRun(Exception):
    """Nothing can be run; the text names what is missing and the next step."""


def kernel_specs() -> KernelSpecManager:
    """Where to look for the kernel: beside this Python and nowhere else, because a `rust` kernel in the home
    directory is a plain evcxr without the workshop's crates. Raises `CannotRun` when it is not there."""
    folder = Path(sys.prefix, "share", "jupyter", "kernels")
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    try:
        program = specs.get_kernel_spec(KERNEL).argv[0]
    except NoSuchKernel:
        raise CannotRun(f"there is no kernel `{KERNEL}` in {folder}: run `make setup`") from None
    except Exception as error:  # broken JSON, a wrong type, an empty argv: all are mended in the same way
        path = folder / KERNEL / "kernel.json"
        raise CannotRun(f"{path} cannot be used ({error}): run `make setup`") from None
    if not shutil.which(program):
        raise CannotRun(f"the kernel's program {program} is not there: run `make setup`")
    return specs


class Client(NotebookClient):
    """nbclient with two things that evcxr needs: patience for a cell's last lines, a limit to its text."""

    def __init__(self, notebook: NotebookNode, manager: AsyncKernelManager, timeout: int, log: Path) -> None:
        """A client for one run of `notebook`; `timeout` is each cell's, in seconds; `log` is the kernel's."""
        super().__init__(
            notebook,
            km=manager,
            timeout=timeout,
            startup_timeout=START_LIMIT,
            # nbclient would drop what it could not read within 4 s of a cell's end, and say nothing.
            iopub_timeout=timeout,
            raise_on_iopub_timeout=True,
            # No excuses: a tag in a notebook must not turn a failure into a success, or skip a cell.
            force_raise_errors=True,
            skip_cells_with_tag="",
            record_timing=False,
            store_widget_state=False,
            on_cell_executed=self.read_late_output,
        )
        self.kernel_log = log
        self.printed = 0

    async def run_cell(self, cell: NotebookNode, position: int, count: int) -> str | None:
        """Execute one code cell, leave tidy outputs in it, and return what is wrong with it, or None.

        `position` is the cell's place among all cells, `count` the number it gets.
        """
        self.printed = 0
        trouble = None
        try:
            await self.async_execute_cell(cell, position, execution_count=count)
        except CellTimeoutError:
            trouble = f"it took longer than {self.timeout} s (--timeout or CELL_TIMEOUT sets the limit)"
        except DeadKernelError:
            trouble = f"the kernel died; the end of its log:\n{last_lines(self.kernel_log)}"
        except CellExecutionError:
            trouble = "the kernel reports an error without a text"  # used only if the outputs have none
        finally:
            cell.outputs = tidy_outputs(cell)
        if self.printed > MOST_TEXT:
            trouble = f"it printed more than {MOST_TEXT:,} characters: print less, or write to a file"
        return error_text(cell) or trouble

    async def read_late_output(self, cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        """Read on until the kernel is silent. evcxr sends stdout and stderr from a thread of its own, so a
        cell's last lines, and the text of a failed `?`, may come after the message that says it is done."""
        cell_id = execute_reply["parent_header"]["msg_id"]
        with suppress(Empty):
            while self.printed <= MOST_TEXT:
                message = await self.kc.iopub_channel.get_msg(timeout=QUIET)
                if message["parent_header"].get("msg_id") == cell_id and message["msg_type"] == "stream":
                    self.process_message(message, cell, cell_index)

    def output(self, outs: list[NotebookNode], msg: dict[str, Any], *others: Any) -> NotebookNode | None:
        """Keep one output. A cell that prints without end is ended here: evcxr queues what it prints, so
        waiting for the timeout costs gigabytes."""
        if msg["msg_type"] == "stream":
            self.printed += len(msg["content"]["text"])
            if self.printed > MOST_TEXT:
                self.task_poll_for_reply.cancel()  # as nbclient itself does when the kernel has died
                return None
        return super().output(outs, msg, *others)


class Kernel:
    """A kernel with all that belongs to it: process group, connection file, log and scratch directory."""

    def __init__(self, specs: KernelSpecManager, log: Path) -> None:
        self.manager = AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)
        self.log = log
        self.scratch = tempfile.mkdtemp(prefix="notebook-")
        self.client: Client | None = None

    async def start(self, notebook: NotebookNode, folder: Path, timeout: int) -> Client:
        """Start the kernel in `folder` and wait until it answers. What it says itself (`Compiling …`) goes to
        the log. Raises RuntimeError or OSError when it does not start."""
        self.client = Client(notebook, self.manager, timeout, self.log)
        # evcxr compiles in a directory that it removes itself, but not when it is killed.
        env = os.environ | {"EVCXR_TMPDIR": self.scratch}
        with self.log.open("wb") as log:
            await self.client.async_start_new_kernel(cwd=str(folder), env=env, stdout=log, stderr=log)
        await self.client.async_start_new_kernel_client()
        reply = await self.client.async_wait_for_reply(self.client.kc.kernel_info())
        notebook.metadata.language_info = reply["content"]["language_info"]
        return self.client

    async def stop(self) -> None:
        """End evcxr, its child, rustc and everything else in their process group. Even a healthy kernel is
        not asked first: it has nothing to save, and one way to stop is one way to test. A server that a cell
        started on purpose, in a session of its own, lives on."""
        try:
            end_group(self.manager.provisioner)
            with suppress(RuntimeError, ZMQError):  # it has not even started, or died at once
                await self.manager.shutdown_kernel(now=True)
            if self.client and self.client.kc:
                self.client.kc.stop_channels()
        finally:
            self.manager.cleanup_connection_file()
            shutil.rmtree(self.scratch, ignore_errors=True)


def last_lines(log: Path) -> str:
    """The end of a log, or nothing if there is none."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:]) if log.exists() else ""


def end_group(provisioner: Any) -> None:
    """SIGKILL to the kernel's process group, until nobody is left in it (2 s at most: zombies stay longer
    where nobody collects them, and they are harmless)."""
    deadline = time.monotonic() + 2
    while provisioner and provisioner.pgid and time.monotonic() < deadline:
        try:
            os.killpg(provisioner.pgid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM when only zombies are left
            return
        if provisioner.process:
            provisioner.process.wait()
        time.sleep(0.01)


def tidy_outputs(cell: NotebookNode) -> list[NotebookNode]:
    """The cell's outputs with one entry per stream (they come line by line), streams first, and with the
    cell's own number (evcxr begins to count at 2)."""
    streams: dict[str, list[str]] = {}
    others = []
    for output in cell.outputs:
        if output.output_type == "stream":
            streams.setdefault(output.name, []).append(output.text)
        else:
            others.append(output)
            if "execution_count" in output:
                output.execution_count = cell.execution_count
    texts = [nbformat.v4.new_output("stream", name=n, text="".join(streams[n])) for n in sorted(streams)]
    return texts + others


def error_text(cell: NotebookNode) -> str:
    """What the outputs say about a failure: the kernel's errors, then stderr; empty when there is neither.

    Text on stderr alone is a failure, too: evcxr shows a failed `?` there and goes on with the next cell.
    """
    errors = ["\n".join(o.traceback) or o.evalue for o in cell.outputs if o.output_type == "error"]
    stderr = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    return "\n".join(errors + [f"it wrote to stderr:\n{text}" for text in stderr])
