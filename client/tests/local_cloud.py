"""A local cloud for one test file, and waiting for what happens in it."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from clients import ROOT, Cloud

FULL = bool(os.environ.get("FULL"))


def size(small, full):
    """How much of it: `make test` runs the small sizes, `make faults` and FULL=1 the full ones."""
    return full if FULL else small


@contextmanager
def local_cloud(model):
    """A cloud on free ports with a bucket and a model, in a folder of its own.

    A second process stops the cloud and deletes the folder. It waits at a pipe that closes when we are done or gone:
    also after Ctrl-C, and when pytest-xdist kills a worker.
    """
    folder = Path(tempfile.mkdtemp(prefix="iris-test-"))
    cloud = Cloud(folder / "local")
    stop = [sys.executable, ROOT / "deploy/local.py", "stop"]
    end = subprocess.Popen(
        ["sh", "-c", 'read -r _; "$@"; rm -rf "$FOLDER"', "sh", *stop],
        env={**os.environ, "FOLDER": str(folder), "LOCAL_DIR": str(cloud.dir)},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        cloud.must("local")
        cloud.must("bucket")
        cloud.publish(model)
        yield cloud
    finally:
        end.stdin.close()
        end.wait(60)


def wait_for(condition, seconds=15, what="it"):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value
