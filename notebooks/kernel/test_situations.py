"""The set-up on other people's machines: one row for each situation, and what must happen there.

Make, Cargo, pip, Git and Jupyter are the real ones where that takes seconds. Where it would take minutes, a stand-in
says what it was called with. What cannot be tried on this machine is a row, too, and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import setup
from test_setup import program

ROOT = setup.ROOT
SAY_ENVIRONMENT = f'exec {sys.executable} -c "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))" "$@"'
# All of AWS's own settings that would lead a call elsewhere, or change it.
HOSTILE = {
    "AWS_ENDPOINT_URL": "https://example.com",
    **{f"AWS_ENDPOINT_URL_{name}": "https://example.com" for name in ("S3", "LAMBDA", "STS", "CLOUDFORMATION", "SQS", "IOT")},
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_CA_BUNDLE": "/nonexistent/ca.pem",
    "AWS_PROFILE": "company-sso",
    "AWS_DEFAULT_PROFILE": "company-sso",
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_SESSION_TOKEN": "x",
    "AWS_ROLE_ARN": "arn:aws:iam::1:role/x",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.2/x",
}  # fmt: skip


class Clone:
    """A clone of the project, with stand-ins for all that takes long."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder.parent / "bin"
        shutil.copytree(setup.HERE, folder / "notebooks/kernel", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Makefile", "Cargo.toml", "Cargo.lock", "deploy", "iris_fn", "client", "notebooks/workshop"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "data", folder / "data")
        self.python = program(self.bin / "python", "exit 0")
        program(self.bin / "rustc", "echo release: 1.95.0; echo host: here")
        program(self.bin / "cargo", 'case "$1" in -Z*) ;; *) exit 1;; esac')
        for name in ("deploy", "client"):
            program(folder / "target/notebook" / name, SAY_ENVIRONMENT)
        program(folder / ".venv/bin/python", "exit 0")
        program(folder / ".venv/bin/jupyter", SAY_ENVIRONMENT)
        program(folder / "target/setup/evcxr_jupyter", SAY_ENVIRONMENT)

    def make(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """`make` there, with this and nothing else set."""
        clean = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": os.environ["HOME"], "PYTHON": str(self.python)}
        return subprocess.run(
            ["make", *arguments], cwd=self.folder, env=clean | settings, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=60,
        )  # fmt: skip

    def seen(self, *arguments: str, **settings: str) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of the last program that `make` starts."""
        done = self.make(*arguments, **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def environment(self, *arguments: str, **settings: str) -> dict[str, str]:
        return self.seen(*(arguments or ("status",)), **settings)[1]

    def refused(self, *arguments: str, **settings: str) -> str:
        """The sentence with which `make` ends, before anything is installed or built."""
        shutil.rmtree(self.folder / ".venv")
        done = self.make(*(arguments or ("setup",)), **{"PYTHON": sys.executable, **settings})
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert not (self.folder / ".venv").exists() and "…" not in done.stdout
        return done.stderr.splitlines()[0]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


# ---- Rust, Git, Cargo, pip ---------------------------------------------------------------------------------


def old_rust(clone: Clone) -> None:
    program(clone.bin / "rustc", "echo release: 1.94.1")
    assert "Rust 1.95 or newer is needed" in (output := clone.refused()) and "1.94.1" in output and "network" not in output


def autocrlf(clone: Clone) -> None:
    """As Git for Windows clones; WSL2 then reads the files from there."""
    origin, git = clone.folder.parent / "origin", ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    origin.mkdir()
    for name in (".gitattributes", "Makefile", "data/iris.csv", "notebooks/live.png"):
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, origin / name)
    copy = clone.folder.parent / "copy"
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    subprocess.run([*git, "clone", "-q", "-c", "core.autocrlf=true", origin, copy], check=True)
    for name in ("Makefile", "data/iris.csv", "notebooks/live.png"):
        assert (copy / name).read_bytes() == (ROOT / name).read_bytes(), name


def windows_line_ends(clone: Clone) -> None:
    file = clone.folder / "data/iris.csv"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert "rm data/*.csv && git checkout data" in clone.refused()


CARGO_FILE = """
[build]
target-dir = "/nonexistent/elsewhere"
build-dir = "/nonexistent/build"
rustc-wrapper = "sccache-that-is-not-there"
rustc-workspace-wrapper = "sccache-that-is-not-there"
rustflags = ["-Ctarget-cpu=no-such-cpu"]
[target.x86_64-unknown-linux-gnu]
linker = "no-such-linker"
[target.aarch64-unknown-linux-gnu]
linker = "no-such-linker"
[profile.dev]
panic = "abort"
lto = "fat"
[profile.release]
panic = "abort"
lto = "off"
opt-level = 0
"""


def cargo_home(clone: Clone, content: str) -> Path:
    """Cargo's home with a configuration, and the real Cargo."""
    home = clone.folder.parent / "cargo"
    home.mkdir()
    (home / "config.toml").write_text(content)
    for name in ("cargo", "rustc"):
        (clone.bin / name).unlink()
        (clone.bin / name).symlink_to(shutil.which(name))
    return home


def cargo_file(clone: Clone) -> None:
    """A build as `setup.cargo` makes it, of a crate without dependencies."""
    home, crate = cargo_home(clone, CARGO_FILE), clone.folder.parent / "crate"
    (crate / "src").mkdir(parents=True)
    manifest = '[package]\nname = "small"\nedition = "2024"\n[profile.notebook]\ninherits = "dev"\n'
    (crate / "Cargo.toml").write_text(manifest)
    (crate / "src/main.rs").write_text('fn main() { assert!(std::panic::catch_unwind(|| panic!("caught")).is_err()) }')
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import setup, pathlib; setup.ROOT = pathlib.Path.cwd();"
        "setup.TARGET = setup.ROOT / 'target'; print(json.dumps([setup.sealed('notebook'), setup.sealed('release')]))"
    )
    environment = os.environ | {"CARGO_HOME": str(home)}
    notebook, release = json.loads(subprocess.check_output(
        [sys.executable, "-c", script, str(setup.HERE)], cwd=crate, env=environment, text=True
    ))  # fmt: skip
    build = ["cargo", "build", "--quiet", "--offline", "--profile"]
    subprocess.run([*build, "notebook"], cwd=crate, env=environment | notebook, check=True, timeout=120)
    subprocess.run([crate / "target/notebook/small"], check=True, stderr=subprocess.DEVNULL)
    # Cargo remembers what rustc says of itself: each cell is a build, and asking takes longer than compiling it.
    logged = environment | notebook | {"CARGO_LOG": "cargo::util::rustc=debug"}
    again = subprocess.run([*build, "notebook"], cwd=crate, env=logged, stderr=subprocess.PIPE, text=True, check=True)
    assert "rustc info cache hit" in again.stderr and "cache miss" not in again.stderr, again.stderr
    assert release["CARGO_PROFILE_RELEASE_LTO"] == "fat" and release["CARGO_PROFILE_RELEASE_OPT_LEVEL"] == "s"
    subprocess.run([*build, "release"], cwd=crate, env=environment | release, check=True, timeout=120)
    subprocess.run([crate / "target/release/small"], check=True, stderr=subprocess.DEVNULL)


def cargo_target(clone: Clone) -> None:
    home = cargo_home(clone, '[build]\ntarget = "x86_64-unknown-linux-musl"\n')
    output = clone.refused(CARGO_HOME=str(home), RUSTUP_HOME=os.environ.get("RUSTUP_HOME", ""))
    assert f"build.target is set in {home}/config.toml" in output


def cargo_environment(clone: Clone) -> None:
    ours = {"CARGO_BUILD_JOBS": "1", "CARGO_HTTP_PROXY": "http://proxy", "CARGO_HTTP_CAINFO": "/ca.pem"}
    names = "CARGO_TARGET_DIR CARGO_BUILD_TARGET CARGO_BUILD_TARGET_DIR CARGO_BUILD_BUILD_DIR CARGO_BUILD_RUSTFLAGS "
    names += "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER CARGO_PROFILE_RELEASE_LTO CARGO_ENCODED_RUSTFLAGS RUSTFLAGS "
    names += "RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CFLAGS LDFLAGS CARGO_INCREMENTAL"
    found = clone.environment(**ours, **dict.fromkeys(names.split(), "x"))
    assert found.items() >= ours.items() and found.keys() & {*names.split()} == set()


def shipped_to_aws(clone: Clone) -> None:
    """The build for Lambda sees no flag of the user's, from the environment or from a file."""
    home, seen = cargo_home(clone, CARGO_FILE), clone.folder.parent / "seen.json"
    (clone.bin / "cargo").unlink()
    program(
        clone.bin / "cargo",
        f'case "$1" in -Z*) exec {shutil.which("cargo")} "$@";; lambda) {SAY_ENVIRONMENT[5:]} > {seen};; esac',
    )
    script = (
        f"import sys; sys.path.insert(0, {str(clone.folder / 'notebooks/kernel')!r}); import setup; "
        "sys.exit(setup.build_for_lambda())"
    )
    program(clone.bin / "setup", f'exec {sys.executable} -c "{script}"')
    clone.make(
        "build", "TARGET=aws", PYTHON=str(clone.bin / "setup"), CARGO_HOME=str(home), RUSTFLAGS="-Ctarget-cpu=native",
        CFLAGS="-march=native", RUSTUP_HOME=os.environ.get("RUSTUP_HOME", ""),
    )  # fmt: skip
    arguments, found = json.loads(seen.read_text())
    assert {"lambda", "--arm64", "--release"} <= {*arguments}
    assert found.keys() & {"RUSTFLAGS", "CFLAGS"} == set()
    assert found["CARGO_ENCODED_RUSTFLAGS"] == "-Ctarget-cpu=neoverse-n1"
    # Where the manifest does not say it, cargo-lambda takes "abort".
    assert re.search(r'^\[profile\.release\]\n(.+\n)*panic = "unwind"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert found["CARGO_PROFILE_RELEASE_PANIC"] == "unwind" and found["CARGO_PROFILE_RELEASE_OPT_LEVEL"] == "s"


def pip_elsewhere(clone: Clone) -> None:
    """pip puts things into .venv, and still asks the mirror."""
    tmp = clone.folder.parent
    wheel, elsewhere = tmp / "mirror/small-1-py3-none-any.whl", tmp / "elsewhere"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.py", "")
        archive.writestr("small-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1\n")
        archive.writestr("small-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.dist-info/RECORD", "")
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (clone.folder / "notebooks/kernel/requirements.txt").write_text(f"small==1 --hash=sha256:{sha}\n")
    (tmp / "pip.conf").write_text(f"[global]\nuser = true\ntarget = {elsewhere}\nno-index = true\nfind-links = {wheel.parent}\n")
    script = (
        "import sys, subprocess; sys.path.insert(0, 'notebooks/kernel'); import setup\n"
        "for command in setup.python_tools(): subprocess.run(list(map(str, command)), check=True)"
    )
    (tmp / "script.py").write_text(script)
    program(clone.bin / "setup", f"exec {sys.executable} {tmp / 'script.py'}")
    done = clone.make(
        "setup", PYTHON=str(clone.bin / "setup"), PIP_CONFIG_FILE=str(tmp / "pip.conf"), PIP_USER="yes",
        PIP_TARGET=str(elsewhere), PYTHONPATH="/nonexistent", PYTHONHOME="/nonexistent",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(clone.folder.glob(".venv/lib/*/site-packages/small.py")) and not elsewhere.exists()


# ---- paths and homes ---------------------------------------------------------------------------------------


def space_and_umlaut(clone: Clone) -> None:
    """The clone, the Python, HOME and TMPDIR. But evcxr splits the path of a cell at a space."""
    assert "of it has a space in it" in Clone(clone.folder.parent / "of it").refused()
    other = Clone(clone.folder.parent / "clöne")
    odd = other.folder.parent / "hömé dir"
    odd.mkdir()
    python = program(odd / "python 3", f'echo "$1" > "{odd}/called"')
    found = other.environment(PYTHON=str(python), HOME=str(odd), TMPDIR=str(odd))
    assert (odd / "called").read_text() == "notebooks/kernel/setup.py\n" or "notebooks" in (odd / "called").read_text()
    assert found["PATH"].startswith(f"{other.folder}/.venv/bin:") and found["LOCAL_DIR"] == f"{other.folder}/target/local"
    assert other.seen("lab", PYTHON=str(python))[0][0] == "lab"
    (other.folder / "target/setup/rustc").symlink_to(python)  # as rustup's below such a HOME
    found = other.environment("kernel", "CONNECTION_FILE=a b")
    assert found["TMPDIR"] == f"{other.folder}/target/kernels" and found["RUSTC"] == str(python)


def noexec_tmp(clone: Clone) -> None:
    arguments, found = clone.seen("kernel", "CONNECTION_FILE=a.json", TMPDIR="/noexec")
    assert arguments == ["--control_file", "a.json"] and found["TMPDIR"] == f"{clone.folder}/target/kernels"
    assert found["RUSTC_WRAPPER"] == found["RUSTC_WORKSPACE_WRAPPER"] == setup.NO_WRAPPER


def no_home(clone: Clone) -> None:
    """Nothing is kept there; what rustup says is passed on, and the cause is named."""
    found = clone.environment(HOME="/nonexistent")
    for name in ("XDG_CACHE_HOME", "CARGO_HOME", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        assert found[name].startswith(f"{clone.folder}/target/home/"), name
    assert clone.environment(HOME="/nonexistent", CARGO_HOME="/own")["CARGO_HOME"] == "/own"
    program(clone.bin / "rustc", "echo error: rustup could not choose a version >&2; exit 1")
    output = clone.refused(HOME="/nonexistent")
    assert "rustup could not choose a version. HOME=/nonexistent is no folder" in output


def cache_that_cannot_be_written(clone: Clone) -> None:
    output = clone.refused(XDG_CACHE_HOME="/dev/null/cache")
    assert "/dev/null/cache/iris-workshop cannot be written" in output and "XDG_CACHE_HOME=" in output


def tilde(clone: Clone) -> None:
    """As zsh and dash hand it on."""
    for name in ("CSV", "MODEL", "LOCAL_DIR"):
        assert clone.environment("predict", f"{name}=~/my file")[name] == f"{os.environ['HOME']}/my file"
    assert clone.environment("predict", CSV="a~/b")["CSV"] == "a~/b"


def from_elsewhere(clone: Clone) -> None:
    done = subprocess.run(
        ["make", "-f", clone.folder / "Makefile", "status"], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and f'make -C "{clone.folder}" status' in done.stderr


# ---- clouds, proxies, ports --------------------------------------------------------------------------------


def aws_settings(clone: Clone) -> None:
    found = clone.environment(**HOSTILE)
    assert {name: value for name, value in found.items() if name.startswith("AWS_")} == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4566", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }  # fmt: skip
    assert clone.environment("status", "TARGET=aws", **HOSTILE).items() >= HOSTILE.items()


def proxies(clone: Clone) -> None:
    found = clone.environment(HTTP_PROXY="http://proxy", NO_PROXY="mirror.corp", no_proxy=".corp,localhost")
    assert found["HTTP_PROXY"] == "http://proxy" and found["NO_PROXY"] == found["no_proxy"]
    assert {*found["NO_PROXY"].split(",")} == {"127.0.0.1", "localhost", "mirror.corp", ".corp"}
    assert clone.environment()["NO_PROXY"] == "127.0.0.1,localhost"


def ports(clone: Clone) -> None:
    """What the local cloud was started on counts, until another one is given."""
    (clone.folder / "target/local").mkdir()
    record = {"pid": 1, "GATEWAY_PORT": 14566, "IOT_MTLS_PORT": 18883}
    (clone.folder / "target/local/pid").write_text(json.dumps(record) + "\n")
    found = clone.environment()
    assert (found["GATEWAY_PORT"], found["IOT_MTLS_PORT"]) == ("14566", "18883")
    assert found["AWS_ENDPOINT_URL"] == "http://127.0.0.1:14566"
    assert clone.environment("status", "GATEWAY_PORT=1")["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    (clone.folder / "target/local/pid").write_text("")
    assert clone.environment()["GATEWAY_PORT"] == "4566"


# ---- editors and servers -----------------------------------------------------------------------------------


def jupyter(clone: Clone, *arguments: str) -> dict:
    """What a Jupyter with a home directory of its own answers, one that has a Rust kernel of somebody's."""
    home = clone.folder.parent / "home"
    spec = home / ".local/share/jupyter/kernels/rust/kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text('{"argv": ["evcxr_jupyter"], "display_name": "Rust", "language": "rust"}')
    keep = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment = keep | {"HOME": str(home), "JUPYTER_PREFER_ENV_PATH": "0"}
    command = [sys.executable, "-m", "jupyter_client.kernelspecapp", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["kernelspecs"] if "list" in arguments else {}


def kernel_of_somebodys(clone: Clone) -> None:
    """VS Code, or a Jupyter that looks into the home directory first: our notebooks ask for our kernel."""
    there = jupyter(clone, "list", "--json")
    for notebook in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        name = json.loads(notebook.read_text())["metadata"]["kernelspec"]["name"]
        assert there[name]["spec"]["argv"][:4] == ["make", "-s", "-C", str(ROOT)], notebook
    assert there["rust"]["spec"]["argv"] == ["evcxr_jupyter"]


def another_jupyter(clone: Clone) -> None:
    """JupyterHub, or any other server of the same user: the README's line makes the kernel known to it."""
    line = "jupyter kernelspec install --user .venv/share/jupyter/kernels/iris-workshop"
    assert line in (ROOT / "README.md").read_text()
    jupyter(clone, "install", "--user", str(setup.KERNEL))
    installed = clone.folder.parent / "home/.local/share/jupyter/kernels/iris-workshop/kernel.json"
    assert installed.read_bytes() == (setup.KERNEL / "kernel.json").read_bytes()


def container(clone: Clone) -> None:
    arguments, _ = clone.seen("lab", "LAB_ARGS=--ip=0.0.0.0 --no-browser")
    assert arguments[0] == "lab" and arguments[-2:] == ["--ip=0.0.0.0", "--no-browser"]


def not_here(what: str) -> Callable[[Clone], None]:
    return lambda _: pytest.skip(f"cannot be tried on this machine: {what}")


SITUATIONS: dict[str, Callable[[Clone], None]] = {
    "a Rust older than the minimum": old_rust,
    "a clone with core.autocrlf=true": autocrlf,
    "data with Windows' line ends": windows_line_ends,
    "target-dir, build-dir, wrapper, linker, flags and profiles in Cargo's file": cargo_file,
    "build.target in Cargo's file": cargo_target,
    "the same in the environment": cargo_environment,
    "the user's flags and what is shipped to AWS": shipped_to_aws,
    "PIP_USER, PIP_TARGET, PYTHONPATH, PYTHONHOME, and pip.conf": pip_elsewhere,
    "paths with a space and letters that are not ASCII": space_and_umlaut,
    "/tmp mounted noexec": noexec_tmp,
    "a HOME that is missing or read-only": no_home,
    "a cache that cannot be written": cache_that_cannot_be_written,
    "CSV=~/file in zsh or dash": tilde,
    "make -f from elsewhere": from_elsewhere,
    "AWS's own settings": aws_settings,
    "a company's proxy": proxies,
    "ports that were chosen once": ports,
    "a Rust kernel in the home directory": kernel_of_somebodys,
    "JupyterHub and other servers": another_jupyter,
    "docker run -p 8888:8888": container,
    "macOS": not_here("macOS, with GNU make 3.81 and a linker of its own"),
    "GNU make 4.2 and 3.81": not_here("they are in no registry; the Makefile uses nothing newer than 3.81"),
    "Windows' files under WSL2 (/mnt/c)": not_here("WSL2"),
    "VS Code itself": not_here("VS Code; the kernel that it asks for is the row above"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_set_up(clone: Clone, situation: str) -> None:
    SITUATIONS[situation](clone)


# ---- the troubleshooting page ------------------------------------------------------------------------------


def sources() -> str:
    """All that may print a message, as one text without line breaks and quotes that only split it."""
    files = [ROOT / "Makefile", *ROOT.glob("deploy/*.py"), *ROOT.glob("notebooks/kernel/*.[pc]*")]
    files += [each for name in ("deploy", "client", "iris_fn", "notebooks/workshop") for each in (ROOT / name).glob("src/**/*.rs")]
    text = "\n".join(each.read_text() for each in files if not each.name.startswith("test_"))
    return " ".join(re.sub(r'"\s*\n\s*f?"|\\\n\s*', "", text).split())


def messages() -> list[str]:
    page = (ROOT / "TROUBLESHOOTING.md").read_text()
    return re.findall(r"^\| (`+)\s?(.+?)\s?\1 \|", page, re.MULTILINE)


def test_each_message_of_the_troubleshooting_page_is_one_that_we_print() -> None:
    text, found = sources(), [message for _, message in messages()]
    missing = [part for message in found for part in map(str.strip, message.split("…")) if part not in text]
    assert len(found) > 30 and missing == []
