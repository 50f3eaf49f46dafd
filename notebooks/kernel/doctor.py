"""Would the workshop run here? One line for each thing: ok, NOT OK with the next step, or could not ask.

It changes nothing and needs only Python: it runs before anything is built. What can be asked of the cloud,
the deployer asks (deploy/src/doctor.rs): AWS with TARGET=aws, otherwise the local cloud when it runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import setup
from steps import CACHE, ROOT

sys.path.append(str(ROOT / "deploy"))
import local  # noqa: E402

GB = 1e9
DISK, DISK_CACHE, MEMORY = 4, 1, 3  # GB, as the README says
LIVE_PORT = 8890  # of `make live`

OK, NOT_OK, COULD_NOT = "ok", "NOT OK", "could not ask"


def line(state: str, what: str, detail: str, step: str = "") -> bool:
    print(f"{state:<13}  {what:<12} {detail}" + (f"\n{'':27} next: {step}" if step else ""), flush=True)
    return state != NOT_OK


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return path if path.exists() else existing(path.parent)


def tools() -> Iterator[bool]:
    for name, found, wrong in setup.tools(setup.rustc_version()):
        yield line(NOT_OK, name, found, wrong) if wrong else line(OK, name, found)
    for name in ("chromium", "chromedriver"):
        found = shutil.which(name)
        yield line(OK, name, found or "none: only the tests of the live page want one")


def disk() -> Iterator[bool]:
    for name, place, needed in (("disk", ROOT, DISK), ("cache", CACHE, DISK_CACHE)):
        place = existing(place)
        free = shutil.disk_usage(place).free / GB
        # What has been built already takes its share.
        built = (ROOT / "target/setup/evcxr_jupyter").exists()
        if free >= needed or built:
            yield line(OK, name, f"{free:.1f} GB free in {place}" + (", and set up already" if built else ""))
        else:
            step = f"make room: the set-up takes {needed} GB there"
            if place != ROOT:
                step += " (XDG_CACHE_HOME chooses another place)"
            yield line(NOT_OK, name, f"{free:.1f} GB free in {place}", step)


def memory() -> bool:
    try:
        fields = dict(each.split(":") for each in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024 / GB
    except (OSError, KeyError, ValueError) as error:
        return line(COULD_NOT, "memory", f"/proc/meminfo: {error!r}; the set-up takes {MEMORY} GB")
    if free < MEMORY:
        return line(NOT_OK, "memory", f"{free:.1f} GB free", f"close something: the set-up takes {MEMORY} GB")
    return line(OK, "memory", f"{free:.1f} GB free")


def temporary() -> bool:
    """Build scripts and cells are programs; some of them start in the temporary folder."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "program")
            program.write_text("#!/bin/sh\nexit 0\n")
            program.chmod(0o700)
            subprocess.run([program], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        where = tempfile.gettempdir()
        return line(NOT_OK, "programs", f"cannot run one in {where}: {error}",
                    f"{where} is mounted noexec or full: choose another, export TMPDIR=$HOME/tmp")  # fmt: skip
    return line(OK, "programs", f"may run in {tempfile.gettempdir()}")


def ports(settings: local.Settings) -> Iterator[bool]:
    record = local.running(settings) or {}
    live = os.environ.get("LIVE_PORT") or str(LIVE_PORT)
    if not (live.isascii() and live.isdigit() and 1 <= int(live) <= 65535):
        yield line(NOT_OK, "port", f"LIVE_PORT={live!r}", "give a whole number from 1 to 65535")
        return
    for name, port in {**settings.ports, "LIVE_PORT": int(live)}.items():
        if record.get(name) == port:
            yield line(OK, f"port {port}", "has this folder's local cloud")
        elif trouble := local.why_taken(port):
            step = f"end what listens there, or choose another with {name}=…"
            yield line(NOT_OK, f"port {port}", trouble, step)
        else:
            yield line(OK, f"port {port}", "is free")


def network() -> Iterator[bool]:
    """Through the tools themselves: they know the user's mirrors, proxies and certificates."""
    if setup.BUNDLE.exists():
        yield line(OK, "network", "not needed: this folder comes from a bundle")
        return
    ask = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    pip = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL") or pip or "https://pypi.org/simple/"
    yield reachable("PyPI", index.rstrip("/") + "/pip/")
    if shutil.which("cargo"):
        info = ["cargo", "info", "--color=never", "--registry=crates-io", "cfg-if"]
        try:
            found = subprocess.run(info, capture_output=True, text=True, check=False, timeout=30, cwd="/")
        except subprocess.TimeoutExpired:
            yield line(NOT_OK, "crates.io", "no answer in 30 s", NETWORK)
            return
        output = found.stderr.strip().splitlines()
        if found.returncode == 0:
            yield line(OK, "crates.io", "answers, as Cargo is configured")
        elif "no such command" in found.stderr:
            yield line(COULD_NOT, "crates.io", "this Cargo has no `cargo info`")
        else:
            yield line(NOT_OK, "crates.io", output[-1].strip() if output else "cargo info failed", NETWORK)


NETWORK = "the set-up downloads once: look at HTTPS_PROXY and the mirrors (pip config list, Cargo's config.toml)"


def reachable(what: str, url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=15).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in (401, 403, 407):
            return line(NOT_OK, what, f"{url}: {error}", NETWORK)
        return line(OK, what, f"{url} answers")
    except (OSError, HTTPException, ValueError) as error:
        return line(NOT_OK, what, f"{url}: {error}", NETWORK)
    return line(OK, what, f"{url} answers")


def cloud(settings: local.Settings) -> bool:
    """What the deployer can ask, of AWS or of the local cloud."""
    aws, deployer = os.environ.get("TARGET") == "aws", setup.BUILD / "deploy"
    what = "AWS" if aws else "local cloud"
    if not aws and not local.readiness(settings.gateway):
        return line(OK, what, "does not run: make local starts it")
    if not deployer.exists():
        return line(COULD_NOT, what, "the deployer is not built yet: make setup builds it")
    print(f"-- {what}", flush=True)
    return subprocess.run([deployer, "doctor"], check=False).returncode == 0


def main() -> int:
    try:
        settings = local.Settings(os.environ)
        healthy = [*tools(), *disk(), memory(), temporary(), *ports(settings), *network(), cloud(settings)]
    except KeyboardInterrupt:
        print("doctor: stopped", file=sys.stderr)
        return 130
    bad = healthy.count(False)
    print("nothing is wrong" if not bad else f"not ok: {bad} (each has its next step)")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
