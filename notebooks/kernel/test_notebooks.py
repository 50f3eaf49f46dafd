"""The committed notebooks, run from top to bottom on a local cloud of their own: each cell must still give
the outputs that are committed, up to what varies from run to run."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Two files use it, perhaps side by side.
WORK = ROOT / "target" / "test-notebooks" / os.environ.get("PYTEST_XDIST_WORKER", "alone")
# The fifth waits six minutes for containers to grow cold.
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb" if os.environ.get("FULL") else "0[0-4]*.ipynb"))


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def cloud() -> Iterator[dict[str, str]]:
    """The environment of an empty local cloud that lives as long as the test."""
    shutil.rmtree(WORK, ignore_errors=True)
    settings = {
        "TARGET": "local",
        "STACK": "iris",
        "DEVICE": "headless",
        "LOCAL_DIR": str(WORK / "local"),
        "GATEWAY_PORT": str(free_port()),
        "IOT_MTLS_PORT": str(free_port()),
    }
    # What `make test` was called with is not for the makes below it.
    makes = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    env = {k: v for k, v in os.environ.items() if k not in makes} | settings
    subprocess.run(["make", "local"], cwd=ROOT, env=env, check=True, timeout=120)
    yield env
    subprocess.run(["make", "stop"], cwd=ROOT, env=env, check=True, timeout=120)


def test_every_committed_output_is_what_the_cell_gives_today(cloud: dict[str, str]) -> None:
    command = [".venv/bin/python", "notebooks/kernel/run.py", "--check", "--out", str(WORK), *map(str, NOTEBOOKS)]
    assert NOTEBOOKS, "no notebooks found"
    if subprocess.run(command, cwd=ROOT, env=cloud, timeout=1800).returncode:
        pytest.fail("a notebook failed or is stale; what it printed above says which cell", pytrace=False)
