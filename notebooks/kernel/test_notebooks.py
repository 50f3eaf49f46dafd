"""The committed notebooks, run from top to bottom on a local cloud of their own: each cell must still give
the outputs that are committed, up to what varies from run to run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from test_outputs import difference
from test_situations import HOSTILE

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "deploy/tests"))

from recorder import Recorder  # noqa: E402
from rights import ACCOUNT, needed_and_missing, problems  # noqa: E402
from test_local import free_ports  # noqa: E402

# Two files use it, perhaps side by side.
WORK = ROOT / "target" / "test-notebooks" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
# The fifth waits six minutes for containers to grow cold.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb" if os.environ.get("FULL") else "0[0-4]*.ipynb"))
# Who is called, by strace: `connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("1.1.1.1")}, 16) = 0`.
CALLED = re.compile(r'connect\(.*?sa_family=AF_INET6?,.*?"([^"]+)"')


def settings() -> dict[str, str]:
    """The environment of an empty local cloud."""
    shutil.rmtree(WORK, ignore_errors=True)
    gateway, mqtt = free_ports(2)
    ours = {
        "TARGET": "local",
        "STACK": "iris",
        "DEVICE": "headless",
        "LOCAL_DIR": str(WORK / "local"),
        "GATEWAY_PORT": str(gateway),
        "IOT_MTLS_PORT": str(mqtt),
    }
    # What `make test` was called with is not for the makes below it.
    makes = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    return {k: v for k, v in os.environ.items() if k not in makes} | ours


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.fixture
def cloud() -> Iterator[dict[str, str]]:
    """The same, of one that lives as long as the test."""
    env = settings()
    subprocess.run(["make", "local"], cwd=ROOT, env=env, check=True, timeout=120)
    yield env
    subprocess.run(["make", "stop"], cwd=ROOT, env=env, check=True, timeout=120)


def test_every_committed_output_is_what_the_cell_gives_today_and_nobody_else_is_called() -> None:
    """On a machine whose AWS settings all lead elsewhere. Where strace is, it says who was called. What the kernels and
    their `!make` ask of AWS goes through a recorder: AWS's models know each call, and the deployer's policy allows it."""
    run = [".venv/bin/python", "notebooks/kernel/run.py", "--out", str(WORK), *map(str, NOTEBOOKS)]
    assert NOTEBOOKS, "no notebooks found"
    script = 'make local && { "$@"; code=$?; make stop; exit $code; }'
    command, calls = ["sh", "-c", script, "sh", *run], WORK.with_suffix(".strace")
    calls.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("strace"):
        command = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect", "-o", str(calls), *command]
    ours, redirect = settings(), WORK.with_suffix(".mk")
    committed = {path: (path.read_bytes(), code_cells(path)) for path in NOTEBOOKS}
    with Recorder(f"http://127.0.0.1:{ours['GATEWAY_PORT']}") as recorder:
        # Each make below reads this file first. The cloud, and the functions that it runs, keep their own address.
        redirect.write_text(f"override AWS_ENDPOINT_URL := {recorder.url}\n")
        done = subprocess.run(command, cwd=ROOT, env=ours | HOSTILE | {"MAKEFILES": str(redirect)}, timeout=1800)
    if done.returncode:
        pytest.fail("a notebook failed; what it printed above says which cell", pytrace=False)
    stale = []
    for path, (content, before) in committed.items():
        assert path.read_bytes() == content, f"{path.name}: only a run with --in-place may change it"
        now = code_cells(WORK / path.name)
        if [cell.execution_count for cell in before] != [cell.execution_count for cell in now]:
            stale.append(f"{path.name}: its cells were not run one after the other, or not all of them")
        for number, pair in enumerate(zip(before, now), start=1):
            if found := difference(*pair):
                stale.append(f"{path.name}, code cell {number} no longer shows what is committed:\n{found}")
    assert not stale, "\n".join([*stale, "next: run `make notebooks` and review the diff"])
    if command[0] == "strace":
        called = CALLED.findall(calls.read_text(errors="replace"))
        assert len(called) > 100 and {*called} <= {"127.0.0.1", "::1"}, {*called}
    assert len(recorder.calls) > 50
    assert problems(recorder.calls) == set()
    needed, missing = needed_and_missing(recorder.calls, ["iris", "penguins", "wine"])
    # Its owner's rights: on the local cloud a deploy makes the boundary, and looks whether it is up to date.
    boundary = f"arn:aws:iam::{ACCOUNT}:policy/iris-workshop-boundary"
    assert missing <= {("iam:CreatePolicy", boundary), ("iam:GetPolicyVersion", boundary)}
    assert ("s3:ListAllMyBuckets", "*") in needed  # or it must leave the policy: nobody else uses it (test_rights.py)
