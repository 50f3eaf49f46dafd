"""Commands that run side by side, share the machine's cores, and show how far they are: what `setup.py` is made of."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAMPS = ROOT / "target" / "setup"  # what was done, on which inputs, with the log of each step
# Outside the clone, so that the next one knows how long a step takes here.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iris-workshop"
TIMES = CACHE / "setup.json"
NETWORK = re.compile(
    r"failed to (download|fetch)|spurious network|could ?n.t resolve|name resolution|timed out|NewConnectionError|"
    r"Connection (refused|reset)|network failure",
    re.IGNORECASE,
)


class SetupError(Exception):
    """A sentence that says what is wrong and what to do next."""


class Jobserver:
    """GNU make's protocol: Cargo and rustc take a token from a pipe for each job beyond their first. A few more jobs
    than there are cores, because those of a build that can wait are run at a low priority."""

    def __init__(self) -> None:
        self.cores, (self.read, self.write) = os.cpu_count() or 1, os.pipe()
        os.write(self.write, b"+" * self.cores)
        pipe = f"{self.read},{self.write}"
        self.environment = {"CARGO_MAKEFLAGS": f"-j --jobserver-fds={pipe} --jobserver-auth={pipe}"}


@dataclass
class Step:
    """One part of the set-up: commands that run one after the other, in the background."""

    name: str
    fingerprint: str  # of its inputs
    product: Path
    commands: Callable[[], list[list[str | Path]]]  # called when the step starts: it may look around first
    usual: tuple[float, int] = (5, 0)  # seconds of one core and crates, until this machine has measured them
    after: tuple[str, ...] = ()
    nice: int = 4  # 0 for what takes longest and cannot use all cores: the others get less
    process: subprocess.Popen[bytes] | None = None
    queue: list[list[str | Path]] = field(default_factory=list)
    began: float = 0.0
    cpu: float = 0.0

    def __post_init__(self) -> None:
        self.stamp = STAMPS / re.sub(r"\W+", "-", self.name)
        self.log = self.stamp.with_suffix(".log")

    def done(self) -> bool:
        """Whether it succeeded before on the same inputs, and what it makes is still there."""
        return self.product.exists() and self.stamp.exists() and self.stamp.read_text() == self.fingerprint

    def crates(self) -> int:
        """How many crates have been compiled, or are under way."""
        return self.log.read_bytes().count(b"Compiling ")

    def failure(self) -> str:
        """What it says when it has failed: from its first error on, and the next step."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        first = next((n for n, line in enumerate(lines) if re.match(r"error\b", line, re.I)), max(0, len(lines) - 15))
        text = "\n".join(f"    {line}" for line in lines[first : first + 25])
        network = "This step needs the network once: check it. " if NETWORK.search(text) else ""
        return (
            f"{text}\n{self.name}: {self.process.args[0]} failed with exit code {self.process.returncode}; "
            f"the whole log is {self.log}.\n{network}The same command continues from here."
        )


class Run:
    """Those of the steps that are not done yet, as many side by side as may be, with one line of progress."""

    def __init__(self, steps: list[Step]) -> None:
        self.waiting = [step for step in steps if not step.done()]
        self.all, self.active, self.jobserver = list(self.waiting), [], Jobserver()
        self.began = self.spoken = time.monotonic()
        self.tty = sys.stdout.isatty()
        try:
            self.times = json.loads(TIMES.read_text())
        except (OSError, ValueError):
            self.times = {}

    def go(self) -> None:
        """Run them all. Raises `SetupError` when one fails, after ending the others."""
        STAMPS.mkdir(parents=True, exist_ok=True)
        try:
            while self.waiting or self.active:
                unfinished = {step.name for step in (*self.waiting, *self.active)}
                for step in [step for step in self.waiting if not unfinished & {*step.after}]:
                    self.waiting.remove(step)
                    self.active.append(step)
                    step.log.write_bytes(b"")
                    step.began, step.queue = time.monotonic(), step.commands()
                    self.say(f"setup: {step.name} …")
                for step in list(self.active):
                    self.advance(step)
                self.progress()
                time.sleep(0.1)
        finally:
            self.stop()

    def advance(self, step: Step) -> None:
        """Start the step's next command when the one before has succeeded; after the last, the step is done."""
        if step.process:
            pid, status, usage = os.wait4(step.process.pid, os.WNOHANG)
            if not pid:
                return
            step.process.returncode = os.waitstatus_to_exitcode(status)
            step.cpu += usage.ru_utime + usage.ru_stime
            if step.process.returncode:
                raise SetupError(step.failure())
        if step.queue:
            with step.log.open("ab") as log:
                step.process = subprocess.Popen(
                    list(map(str, step.queue.pop(0))), cwd=ROOT, env=os.environ | self.jobserver.environment,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=(self.jobserver.read, self.jobserver.write),
                    # A group of its own, to be ended as a whole. Not a session: Linux shares cores among these first.
                    preexec_fn=lambda: (os.setpgid(0, 0), os.nice(step.nice)),
                )  # fmt: skip
            return
        if not step.product.exists():
            raise SetupError(f"{step.name}: it ended well but {step.product} is not there; {step.log} may say why")
        step.stamp.write_text(step.fingerprint)
        self.active.remove(step)
        self.remember(step)
        self.say(f"setup: {step.name}: {time.monotonic() - step.began:.0f} s")

    def stop(self) -> None:
        """End what still runs, with all it started. First as Ctrl-C does, so that pip tidies up after itself."""
        running = [step.process for step in self.active if step.process and step.process.returncode is None]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + 5
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(0.05)

    def remember(self, step: Step) -> None:
        """For the next run's expectation. A step that had been interrupted before says nothing about a whole one."""
        if (crates := step.crates()) < 0.9 * step.usual[1]:
            return
        self.times[step.name] = (round(step.cpu), crates)
        try:
            TIMES.parent.mkdir(parents=True, exist_ok=True)
            TIMES.write_text(json.dumps(self.times) + "\n")
        except OSError:
            pass  # a cache that cannot be written costs an estimate, nothing else

    def progress(self) -> None:
        """One line: which step of how many, crates done of all, time gone and expected."""
        now = time.monotonic()
        if now - self.spoken < (0.5 if self.tty else 30):
            return
        self.spoken = now
        expected = {step.name: self.times.get(step.name, step.usual) for step in self.all}
        counts = {step.name: (step.crates(), expected[step.name][1]) for step in self.active}
        parts = [f"{name} {n}/{max(n, all)} crates" if all else name for name, (n, all) in counts.items()]
        minutes = sum(seconds for seconds, _ in expected.values()) / self.jobserver.cores / 60
        done = len(self.all) - len(self.waiting) - len(self.active)
        line = f"  {done} of {len(self.all)} done: {' · '.join(parts)}  "
        line += f"{(now - self.began) // 60:.0f}:{(now - self.began) % 60:02.0f} of about {minutes:.0f} min"
        if self.tty:
            print(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        else:
            print(line, flush=True)

    def say(self, line: str) -> None:
        """A line that stays; on a terminal, in the place of the progress."""
        print("\r\x1b[K" * self.tty + line, flush=True)
