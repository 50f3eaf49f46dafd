"""Make everything the notebooks need, once: Python tools, the Rust kernel, the notebooks' library.

Each step is skipped when its inputs have not changed since it last succeeded, so that every `make`
target can afford to call this first. Only the standard library is used: this runs before anything
is installed.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `main`: a Ctrl-C during the imports prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv"
TARGET = ROOT / "target"
STAMPS = TARGET / "setup"
LOG = TARGET / "setup.log"
KERNEL = VENV / "share" / "jupyter" / "kernels" / "rust"
DEPS = TARGET / "notebook" / "deps"
LIBRARY = DEPS / ("libworkshop.dylib" if sys.platform == "darwin" else "libworkshop.so")

RUST = (1, 94, 1)
EVCXR_VERSION = "0.22.0"
# Outside the clone, with its version in the name: the next clone finds it and saves six minutes, and an
# evcxr that you installed for yourself stays as it is.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iris-workshop"
EVCXR = CACHE / f"evcxr_jupyter-{EVCXR_VERSION}" / "bin" / "evcxr_jupyter"

MISSING_TOOLS = {
    "cargo": "Rust is missing. Install it from https://rustup.rs (rustc 1.94.1 or newer), then open a new terminal.",
    "rust": f"Rust {'.'.join(map(str, RUST))} or newer is needed: rustup update stable && rustup default stable",
    "cc": "A C compiler is missing. Debian/Ubuntu: apt install build-essential · Fedora: dnf install gcc · "
    "macOS: xcode-select --install",
    "venv": "Python's venv module is missing. Debian/Ubuntu: apt install python3-venv",
}


class SetupError(Exception):
    """A sentence that says what is wrong and what to do next."""


def rustc_version() -> str:
    """What rustc says of itself; empty when it does not work (rustup without a toolchain)."""
    return subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=False).stdout


def check_tools() -> None:
    """The tools that this cannot install itself."""
    if sys.version_info < (3, 10):
        raise SetupError(
            f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}: "
            "install one and name it, make setup PYTHON=python3.12"
        )
    if not shutil.which("cargo") or not shutil.which("rustc"):
        raise SetupError(MISSING_TOOLS["cargo"])
    found = re.search(r"^release: (\d+)\.(\d+)\.(\d+)", rustc_version(), re.MULTILINE)
    if not found or tuple(map(int, found.groups())) < RUST:
        raise SetupError(MISSING_TOOLS["rust"])
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        raise SetupError(MISSING_TOOLS["cc"])
    try:
        import ensurepip  # noqa: F401  (Debian ships Python without it)
        import venv  # noqa: F401
    except ImportError as missing:
        raise SetupError(MISSING_TOOLS["venv"]) from missing


def digest(*inputs: Path | str) -> str:
    """SHA-256 over file contents (folders: every file in them) and plain words."""
    sha = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            sha.update(item.encode())
            continue
        for file in sorted(f for f in item.rglob("*") if f.is_file()) if item.is_dir() else [item]:
            sha.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def step(name: str, fingerprint: str, product: Path, work) -> None:
    """Run `work` unless it succeeded before on the same fingerprint and its product is still there."""
    stamp = STAMPS / re.sub(r"\W+", "-", name)
    if product.exists() and stamp.exists() and stamp.read_text() == fingerprint:
        return
    started = time.monotonic()
    print(f"setup: {name} …", flush=True)
    work()
    if not product.exists():
        raise SetupError(f"{name}: it ended well but {product} is not there; {LOG} may tell why")
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(fingerprint)
    print(f"setup: {name}: {time.monotonic() - started:.0f} s", flush=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output in the log, and say every now and then how far it is."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    tty = sys.stdout.isatty()
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        begin = log.tell()
        started = reported = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - reported > (1 if tty else 30):
                    reported = time.monotonic()
                    line = f"  {reported - started:4.0f} s  {last_line(begin)}"
                    print(f"\r\x1b[K{line}" if tty else line, end="" if tty else "\n", flush=True)
        finally:
            # Ctrl-C: the command and all it started. First as Ctrl-C does, so that pip tidies up after itself.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    try:
                        process.wait(5)
                    except subprocess.TimeoutExpired:
                        continue
            if tty:
                print("\r\x1b[K", end="", flush=True)
    if process.returncode:
        tail = LOG.read_bytes()[begin:].decode(errors="replace").strip().splitlines()[-15:]
        raise SetupError(
            "\n".join(f"    {line}" for line in tail)
            + f"\n{command[0]} failed with exit code {process.returncode}; the whole log is {LOG}."
            "\nThis step needs the network once. The same command goes on from here."
        )


def last_line(begin: int) -> str:
    """The newest line of the log, with the number of crates compiled so far if any."""
    text = LOG.read_bytes()[begin:].decode(errors="replace")
    crates = text.count("Compiling ")
    line = text.strip().rpartition("\n")[2].strip()[:70]
    return f"{crates} crates, {line}" if crates else line


def install_python_tools() -> None:
    """JupyterLab, the local cloud and the cross-compiler, each file checked against its hash."""
    python = VENV / "bin" / "python"
    # Anew, because what is there may be half made, of another Python, or moved here from elsewhere.
    # The base executable, because this may be running in that very .venv.
    run(getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--clear", VENV)
    requirements = HERE / "requirements.txt"
    run(python, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r", requirements)


def install_evcxr() -> None:
    """The Rust kernel. Built in target/, so that a build that was stopped goes on where it was."""
    if not EVCXR.exists():
        build = TARGET / "evcxr"
        run(
            "cargo", "install", "evcxr_jupyter", "--version", EVCXR_VERSION, "--locked", "--root", EVCXR.parents[1],
            env={"CARGO_TARGET_DIR": str(build)},
        )  # fmt: skip
        shutil.rmtree(build, ignore_errors=True)
    # The kernel wants the standard library's source and would fetch it at its first start. It does
    # without where there is no rustup or no network: completion then knows less.
    if shutil.which("rustup"):
        subprocess.run(
            ["rustup", "component", "add", "rust-src"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip


def build_library() -> None:
    """The notebooks' library, the deployer and the client, in one build so that they share every dependency.

    `prefer-dynamic` links the library against the shared standard library, as each cell is.
    """
    # Every platform's crates: the kernel works offline, and Cargo wants to see the whole lock file.
    run("cargo", "fetch", "--locked")
    run(
        "cargo", "build", "--locked", "--profile", "notebook",
        "--package", "workshop", "--package", "deploy", "--package", "client",
        env={"CARGO_ENCODED_RUSTFLAGS": "-Cprefer-dynamic", "CARGO_TARGET_DIR": str(TARGET)},
    )  # fmt: skip


def configure_jupyter() -> None:
    """A Jupyter kernel named `rust`, in .venv, whose cells see the library as the crate `workshop`; and
    JupyterLab's own settings."""
    KERNEL.mkdir(parents=True, exist_ok=True)
    flags = [
        "-Cprefer-dynamic",
        f"--extern=workshop={LIBRARY}",
        f"-Ldependency={DEPS}",
        # evcxr loads a cell with dlopen, which does not know where the library lies.
        f"-Clink-arg=-Wl,-rpath,{DEPS}",
    ]
    (KERNEL / "init.evcxr").write_text(
        "\n".join(
            (
                ":opt 0",
                ":offline 1",
                # A panic ends the kernel's process: the cell fails, as it should, and variables are lost.
                ":preserve_vars_on_panic 0",
                f":build_env CARGO_ENCODED_RUSTFLAGS={chr(31).join(flags)}",
                f':dep tokio = {{ path = "{HERE / "tokio"}" }}',
                "",
            )
        )
    )
    spec = {
        # Through make, so that a kernel has the same settings as every other target (see `kernel` there).
        "argv": ["make", "-s", "-C", str(ROOT), "kernel", f"EVCXR={EVCXR}", "CONNECTION_FILE={connection_file}"],
        "display_name": "Rust",
        "language": "rust",
        # evcxr listens for interrupts as messages; a signal would stop it for good.
        "interrupt_mode": "message",
        "env": {"EVCXR_CONFIG_DIR": str(KERNEL)},
    }
    config = VENV / "etc" / "jupyter"
    config.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "jupyter_server_config.py", config)
    # Without it the first thing that JupyterLab shows is a question about news.
    lab = VENV / "share" / "jupyter" / "lab" / "settings"
    lab.mkdir(parents=True, exist_ok=True)
    notification = {"fetchNews": "false", "checkForUpdates": False}
    (lab / "overrides.json").write_text(json.dumps({"@jupyterlab/apputils-extension:notification": notification}))
    (KERNEL / "kernel.json").write_text(json.dumps(spec, indent=1) + "\n")


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        check_tools()
        TARGET.mkdir(exist_ok=True)
        with (TARGET / ".setup.lock").open("w") as lock:
            # Two at once: the second waits, and then finds everything done.
            fcntl.flock(lock, fcntl.LOCK_EX)
            rustc = rustc_version()
            sources = [ROOT / "Cargo.lock", ROOT / "Cargo.toml"]
            for crate in (ROOT / "notebooks/workshop", ROOT / "iris_fn", ROOT / "deploy", ROOT / "client"):
                sources += [crate / "Cargo.toml", crate / "src"]
            sources += [ROOT / "deploy" / name for name in ("template.yaml", "deployer-policy.json")]
            sources += [HERE / "rpath.rs", ROOT / "data/iris.csv"]
            step("Python tools", digest(HERE / "requirements.txt", sys.version, str(ROOT)), VENV / "bin/jupyter", install_python_tools)
            step("Rust kernel (evcxr)", EVCXR_VERSION, EVCXR, install_evcxr)
            step("notebook library, deployer and client", digest(*sources, rustc), LIBRARY, build_library)
            settings = digest(HERE / "setup.py", HERE / "jupyter_server_config.py", str(ROOT), rustc)
            step("kernel and JupyterLab settings", settings, KERNEL / "kernel.json", configure_jupyter)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
