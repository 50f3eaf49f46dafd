"""Make everything the notebooks need, once: Python tools, the Rust kernel, the notebooks' library, the programs.

    setup.py            all but the function
    setup.py notebooks  only what a notebook needs to start
    setup.py function   all, and the function as the laptop runs it
    setup.py lambda     all, and the function as AWS runs it, for the processor that ARCH names

Steps run side by side and share the machine's cores through one jobserver. A step is skipped when its inputs have
not changed since it last succeeded, so that every `make` target can afford to call this first. Only the standard
library is used: this runs before anything is installed.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `main`: a Ctrl-C during the imports prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from steps import CACHE, ROOT, STAMPS, Run, SetupError, Step

HERE = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
TARGET = ROOT / "target"
BUILD = TARGET / "notebook"
BUNDLE = TARGET / "bundle"  # there only where `make bundle` of another machine was unpacked
# No other kernel has this name: not the `rust` that many have in their home directory.
KERNEL = VENV / "share" / "jupyter" / "kernels" / "iris-workshop"
LIBRARY = BUILD / "deps" / ("libworkshop.dylib" if sys.platform == "darwin" else "libworkshop.so")

RUST = (1, 95)  # what evcxr 0.22.0's crates ask for; Cargo.toml's rust-version says the same
EVCXR = "0.22.0"
# Parts of rust-analyzer that come along and are not used, or only by Tab: not worth the compiler's time.
EVCXR_IDLE = ("ide", "ide_assists", "ide_completion", "ide_diagnostics", "ide_ssr")
# Outside the clone, with its version in the name: the next clone finds it and saves minutes.
CACHED = CACHE / f"evcxr_jupyter-{EVCXR}" / "bin" / "evcxr_jupyter"
LINK = STAMPS / "evcxr_jupyter"  # to the one that is used
# A program that does nothing but run rustc. Without one, Cargo would take the user's; with an empty name, it runs rustc
# five times more for each cell, because it no longer remembers what rustc told it.
NO_WRAPPER = "env"
CARGO_HOME = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")


def rustc_version() -> str:
    """What rustc says of itself, or why it does not work (rustup without a toolchain); empty when it is not there."""
    if not shutil.which("rustc"):
        return ""
    version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=False)
    return version.stdout or version.stderr or f"exit code {version.returncode}"


def tools(rustc: str) -> Iterator[tuple[str, str, str]]:
    """The tools that this cannot install itself: (name, what was found, what is wrong with it and the next step)."""
    python, wrong = sys.version.split()[0], ""
    if sys.version_info < (3, 10):
        wrong = f"Python 3.10 or newer is needed, this is {python}: install one and name it, make setup PYTHON=python3.12"
    yield "Python", python, wrong
    found, wrong = re.search(r"^release: ((\d+)\.(\d+)\S*)", rustc, re.MULTILINE), ""
    if found and tuple(map(int, found.groups()[1:])) < RUST:
        wrong = f"Rust {RUST[0]}.{RUST[1]} or newer is needed: rustup update stable && rustup default stable (this is {found[1]})"
    elif not rustc or not shutil.which("cargo"):
        wrong = "Rust is missing. Install it from https://rustup.rs, then open a new terminal."
    elif not found:
        wrong = f"rustc does not work: {rustc.splitlines()[0]}"
        if not (os.environ.get("RUSTUP_HOME") or Path.home().is_dir()):
            wrong += f". HOME={Path.home()} is no folder: rustup keeps Rust there, or where RUSTUP_HOME says"
    yield "Rust", found[1] if found else "none", wrong
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    wrong = "A C compiler is missing. Debian/Ubuntu: apt install build-essential · Fedora: dnf install gcc · "
    wrong += "macOS: xcode-select --install"
    yield "C compiler", compiler or "none", "" if compiler else wrong
    there = all(map(importlib.util.find_spec, ("venv", "ensurepip")))  # Debian ships Python without the second
    wrong = "Python's venv module is missing. Debian/Ubuntu: apt install python3-venv"
    yield "venv", "there" if there else "none", "" if there else wrong
    for setting, place in (("XDG_CACHE_HOME", CACHE), ("CARGO_HOME", CARGO_HOME)):
        wrong = f"{place} cannot be written, and what is downloaded once is kept there: choose another folder, {setting}=…"
        yield "home", str(place), "" if writable(place) else wrong
    wrong = f"{ROOT} has a space in it, and evcxr loads no cell from such a folder: rename it, or move the project"
    yield "folder", str(ROOT), wrong if re.search(r"\s", str(ROOT)) else ""
    crlf = b"\r\n" in (ROOT / "data/iris.csv").read_bytes()
    wrong = "data/iris.csv has Windows' line ends (Git's core.autocrlf, or an editor). Bring back the published ones: "
    wrong += "rm data/*.csv && git checkout data"
    yield "data", "Windows' line ends" if crlf else "as published", wrong if crlf else ""


def writable(place: Path) -> bool:
    """Whether the folder may be written, or made."""
    nearest = next(each for each in (place, *place.parents) if each.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def check_tools(rustc: str) -> None:
    """Checked before anything is installed."""
    if wrong := next((wrong for *_, wrong in tools(rustc) if wrong), None):
        raise SetupError(wrong)


def digest(*inputs: Path | str) -> str:
    """SHA-256 over file contents (folders: every file in them) and plain strings."""
    sha = hashlib.sha256()
    for item in inputs:
        if isinstance(item, str):
            sha.update(item.encode())
            continue
        for file in sorted(f for f in item.rglob("*") if f.is_file()) if item.is_dir() else [item]:
            sha.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def python_tools() -> list[list[str | Path]]:
    """JupyterLab, the local cloud and the cross-compiler, each file checked against its hash."""
    # From nothing, because what is there may be half made, of another Python, or moved here from elsewhere.
    # The base executable, because this may be running in that very .venv.
    base = getattr(sys, "_base_executable", sys.executable)
    install = [VENV / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
    # Into .venv, whatever a pip.conf says; its mirrors and proxies stay.
    install += ["--no-user", "--target=", f"--prefix={VENV}", "--root=/"]
    return [[base, "-m", "venv", "--clear", VENV], [*install, "-r", HERE / "requirements.txt"]]


@functools.cache
def rust_flags() -> list[str]:
    """What all builds for the laptop have in common, so that they share every crate."""
    libdir = subprocess.run(["rustc", "--print", "target-libdir"], capture_output=True, text=True, check=True).stdout
    # Against the shared standard library, as each cell is; the programs find it without Cargo.
    flags = ["-Cprefer-dynamic", f"-Clink-arg=-Wl,-rpath,{libdir.strip()}"]
    # A crate that offers its copies of generic functions to others makes each cell read 200,000 names, for longer than
    # it takes to compile the few that the cell needs. The option is not stable yet (rust-lang/rust#47317): a rustc that
    # does not know it makes cells slower, and they work.
    share = "-Zshare-generics=n"
    bootstrap = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    known = subprocess.run(["rustc", share, "--print", "cfg"], env=bootstrap, capture_output=True, check=False)
    return flags if known.returncode else [*flags, share]


def share_cargo_settings() -> None:
    """Where the Makefile has chosen a CARGO_HOME below target/, as the home directory cannot be written: its mirrors."""
    for name in ("config.toml", "credentials.toml"):
        there, here = Path.home() / ".cargo" / name, CARGO_HOME / name
        if TARGET in here.parents and there.exists() and not here.exists():
            CARGO_HOME.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)


@functools.cache
def cargo_settings() -> dict[str, str]:
    """What Cargo's own files set, the user's and those above this folder: name → file. Cargo itself is asked."""
    ask = ["cargo", "-Zunstable-options", "config", "get", "--show-origin"]
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    settings = subprocess.run(ask, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    return dict(re.findall(r"^(\S.*?) = .* # (/.*)$", settings, re.MULTILINE))


# What the profiles of ours have where a user's file may say otherwise: Cargo.toml's, or else Cargo's defaults.
PROFILES = {
    "notebook": {"panic": "unwind", "lto": "false", "strip": "none", "codegen-units": "256", "incremental": "false",
                 "opt-level": "0", "debug": "false", "rpath": "false"},
    "release": {"panic": "unwind", "lto": "fat", "strip": "symbols", "codegen-units": "1", "incremental": "false",
                "opt-level": "s", "debug": "false", "rpath": "false"},
}  # fmt: skip


def sealed(profile: str) -> dict[str, str]:
    """An environment in which Cargo builds as we mean it, whatever the user's files say of other builds. (The Makefile
    keeps the user's environment away.) Raises `SetupError` for what cannot be set back."""
    found = cargo_settings()
    for name in ("build.target", "build.rustc"):
        if name in found:
            raise SetupError(
                f"Cargo's {name} is set in {found[name]}, for all projects: this one builds for the machine it runs on. "
                f"Take the line out, or move it into .cargo/config.toml of the project that needs it"
            )
    # Cells, tests and programs must find what the builds before them have made.
    environment = {"CARGO_TARGET_DIR": str(TARGET), "CARGO_BUILD_BUILD_DIR": str(TARGET)}
    environment |= {"RUSTC_WRAPPER": NO_WRAPPER, "RUSTC_WORKSPACE_WRAPPER": NO_WRAPPER, "CARGO_ENCODED_RUSTFLAGS": ""}
    for name in found:
        table, _, key = name.rpartition(".")
        if table in ("profile.dev", f"profile.{profile}") and (value := PROFILES[profile].get(key)):
            environment[f"CARGO_PROFILE_{profile}_{key}".upper().replace("-", "_")] = value
        elif table.startswith("target.") and key == "linker":
            environment[linker_variable()] = "cc"
    return environment


def host() -> str:
    """This machine as Rust calls it, such as x86_64-unknown-linux-gnu."""
    triple = re.search(r"^host: (\S+)", rustc_version(), re.MULTILINE)
    return triple[1] if triple else "host"


def sysroot() -> Path:
    """Where the Rust that is used here has its programs and libraries."""
    asked = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True)
    return Path(asked.stdout.strip())


def linker_variable() -> str:
    """The name by which the environment chooses this machine's linker, before any file."""
    return f"CARGO_TARGET_{host()}_LINKER".upper().replace("-", "_")


def cargo(*arguments: str) -> list[str | Path]:
    """A Cargo build for the laptop. It names all crates even where it builds one: with other crates their dependencies
    would have other features, and be built once more."""
    settings = sealed("notebook") | {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(rust_flags()), "RUSTC_BOOTSTRAP": "1"}
    assignments = [f"{name}={value}" for name, value in settings.items()]
    # The tests build with the same.
    (STAMPS / "cargo.env").write_text("".join(f"export {shlex.quote(each)}\n" for each in assignments))
    packages = [f"--package={name}" for name in CRATES]
    build = ["build", "--locked", "--profile", "notebook", *packages]
    return ["env", *assignments, "cargo", *build, *arguments]


def build_for_lambda() -> int:
    """What is shipped to AWS: built by cargo-lambda for Lambda's own Linux."""
    if (TARGET / "rust").exists():
        raise SetupError("A bundle builds nothing for AWS: clone the project, with a network and Rust of your own, and deploy from there")
    intel = os.environ.get("ARCH") == "x86_64"
    build = ["cargo", "lambda", "build", "--quiet", "--locked", "--release", "--x86-64" if intel else "--arm64"]
    # cargo-lambda's own choice, which would come after the user's flags.
    processor = f"-Ctarget-cpu={'haswell' if intel else 'neoverse-n1'}"
    environment = os.environ | sealed("release") | {"CARGO_ENCODED_RUSTFLAGS": processor}
    return subprocess.run(
        [*build, "--package", "iris_fn", "--bin", "bootstrap"], cwd=ROOT, env=environment, check=False
    ).returncode


def install_kernel() -> None:
    """Runs as a step's command: use an installed evcxr, else download one, else build it."""
    # The sources of the standard library, for completion; without rustup or a network it does without.
    if shutil.which("rustup"):
        subprocess.run(["rustup", "component", "add", "rust-src"], stdin=subprocess.DEVNULL, check=False)
    named = os.environ.get("EVCXR")
    places = [named] if named else [CACHED, shutil.which("evcxr_jupyter"), CARGO_HOME / "bin/evcxr_jupyter"]
    for place in filter(None, places):
        found = EVCXR if place == CACHED and CACHED.exists() else kernel_version(place)
        if found == EVCXR:
            print(f"using {place}", flush=True)
            return link(LINK, place)
        if named:
            raise SetupError(f"EVCXR={named} is {found or 'not an evcxr_jupyter'}, and {EVCXR} is needed")
    root = CACHED.parents[1]
    if shutil.which("cargo-binstall"):
        print("cargo binstall", flush=True)
        # Without its own fallbacks: it would build without a jobserver, or take a stranger's binary.
        fetch = ["cargo", "binstall", "--no-confirm", "--disable-strategies", "quick-install,compile"]
        subprocess.run([*fetch, "--root", root, f"evcxr_jupyter@{EVCXR}"], check=False)
    if not CACHED.exists():
        # In target/, so that a stopped build continues where it was.
        install = ["install", "evcxr_jupyter", "--version", EVCXR, "--locked", "--root", str(root)]
        install += [f"--config=profile.release.package.ra_ap_{part}.opt-level=0" for part in EVCXR_IDLE]
        # A second round of optimisation, after each crate's own: a quarter of the build, for a twentieth of the start.
        install += ['--config=profile.release.lto="off"']
        folder = str(TARGET / "evcxr")
        places = {"CARGO_TARGET_DIR": folder, "CARGO_BUILD_BUILD_DIR": folder}
        environment = {**os.environ, **sealed("notebook"), **places}
        build = subprocess.run(["cargo", *install], env=environment, check=False)
        if build.returncode:
            sys.exit(build.returncode)
        shutil.rmtree(TARGET / "evcxr", ignore_errors=True)
    link(LINK, CACHED)


def link(name: Path, place: Path | str) -> None:
    """Where the Makefile, and a later run, find it."""
    name.unlink(missing_ok=True)
    name.symlink_to(Path(place).absolute())


# A child in our own process group: what ends this step ends it, too.
ASK_VERSION = """
import queue, subprocess, sys
from jupyter_client import BlockingKernelClient, write_connection_file
file, _ = write_connection_file()
kernel = subprocess.Popen([sys.argv[1], "--control_file", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
client = BlockingKernelClient(connection_file=file)
try:
    client.load_connection_file()
    client.start_channels()
    client.kernel_info()
    for _ in range(60):
        if kernel.poll() is not None:
            sys.exit(1)  # it is no kernel
        try:
            content = client.get_shell_msg(timeout=1)["content"]
        except queue.Empty:
            continue
        print(content["implementation"], content["implementation_version"])
        break
finally:
    client.stop_channels()
    kernel.kill()
"""


def kernel_version(program: Path | str) -> str | None:
    """The version that an evcxr_jupyter itself reports: it has no --version, so it is asked as a kernel."""
    if not os.access(program, os.X_OK):
        return None  # nothing to ask, and on a new machine no Python to ask with either
    with TemporaryDirectory() as tmp:  # a kernel that is killed leaves its own folder there
        ask = [VENV / "bin/python", "-c", ASK_VERSION, program]
        environment = os.environ | {"TMPDIR": tmp}
        asked = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
    found = re.fullmatch(r"evcxr_jupyter (\S+)\s*", asked.stdout)
    return found and found.group(1)


def library_to_link() -> Path:
    """A cell finds the library's functions when it is loaded, and the compiler needs its metadata only. With a library
    of the same name that holds nothing else, the linker need not read 370,000 symbols for each cell."""
    metadata, empty = STAMPS / "metadata", STAMPS / LIBRARY.name
    section = f'.section .rustc,"",@progbits\n.incbin "{metadata}"\n.section .note.GNU-stack,"",@progbits\n'
    link = ["cc", "-shared", "-nostdlib", f"-Wl,-soname,{LIBRARY.name}", "-o", empty, "-x", "assembler", "-"]
    try:
        subprocess.run(["objcopy", "--dump-section", f".rustc={metadata}", LIBRARY, os.devnull], check=True)
        subprocess.run(link, input=section.encode(), check=True)
    except (OSError, subprocess.CalledProcessError):
        return LIBRARY  # macOS, or no binutils: cells are slower and work
    return empty


def tokio_to_link(flags: list[str]) -> Path:
    """The Tokio that evcxr looks for, compiled once: at its start, each kernel would do so."""
    library = STAMPS / "libtokio.rlib"
    compile_it = ["rustc", "--crate-name=tokio", "--crate-type=rlib", "--edition=2024", "-o", library, *flags]
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    subprocess.run([*compile_it, HERE / "tokio/src/lib.rs"], env=environment, check=True)
    return library


def standard_library() -> Path:
    """The sources of the standard library as completion needs them. Without `core::arch`, thousands of processor
    instructions that would take half of a kernel's start to read. Where rustup has no sources, it is empty, and
    completion knows less: the kernel would try to fetch them at each start."""
    sources, links = sysroot() / "lib/rustlib/src/rust/library", STAMPS / "library"
    shutil.rmtree(links, ignore_errors=True)
    for name in ("core", "alloc", "std"):
        if (sources / name).exists():
            links.mkdir(exist_ok=True)
            (links / name).symlink_to(sources / name)
    if not links.exists():
        (links / "core").mkdir(parents=True)
    return links


def manners() -> None:
    """What cell.c says of input and interrupts, for `make kernel` to load before evcxr. Where it cannot be compiled or
    loaded (macOS, a path with a space), a cell that reads input waits, and an interrupted one says SIGKILL."""
    library = STAMPS / "cell.so"
    library.unlink(missing_ok=True)
    if sys.platform == "linux" and not re.search(r"[\s:]", str(library)):
        compile_it = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, HERE / "cell.c"]
        subprocess.run(compile_it, check=False, stderr=subprocess.DEVNULL)


def configure_jupyter() -> None:
    """A Jupyter kernel in .venv whose cells see the library as the crate `workshop`; and JupyterLab's own settings."""
    shutil.rmtree(KERNEL.with_name("rust"), ignore_errors=True)  # its name until November 2026
    KERNEL.mkdir(parents=True, exist_ok=True)
    manners()
    link(STAMPS / "rustc", sysroot() / "bin/rustc")
    folder = LIBRARY.parent
    linked = library_to_link()
    flags = [
        "-Cprefer-dynamic",
        f"--extern=workshop={linked}",
        f"-Ldependency={folder}",
        # evcxr loads a cell with dlopen, which does not know where the library is.
        f"-Clink-arg=-Wl,-rpath,{folder}",
        # A library that holds nothing is not asked for at load time, unless by name.
        *([] if linked == LIBRARY else ["-Clink-arg=-Wl,--no-as-needed", f"-Clink-arg={linked}"]),
        *rust_flags(),
    ]
    flags.append(f"--extern=tokio={tokio_to_link(flags)}")
    # Known before the kernel compiles anything, so that it does not do so twice.
    early = ["[evcxr]", 'opt_level = "0"', "offline_mode = true"]
    # A panic ends the kernel's process: the cell fails, as it should, and variables are lost.
    early += ["preserve_vars_on_panic = false"]
    late = [
        # evcxr takes mold where it finds one; the same linker everywhere is one thing less that differs.
        ":linker system",
        f":build_env CARGO_ENCODED_RUSTFLAGS={chr(31).join(flags)}",
        ":build_env RUSTC_BOOTSTRAP=1",
        # Whatever the user's Cargo files say of other builds. (The Makefile keeps their wrappers away.)
        f":build_env {linker_variable()}=cc",
        *(f":build_env CARGO_PROFILE_DEV_{key}" for key in ("PANIC=unwind", "LTO=false", "STRIP=debuginfo", "DEBUG=false")),
        # What evcxr would add at the first `.await`. Optional: Cargo does not compile it.
        f':dep tokio = {{ path = "{HERE / "tokio"}", optional = true }}',
    ]
    (KERNEL / "evcxr.toml").write_text("\n".join([*early, ""]))
    (KERNEL / "init.evcxr").write_text("\n".join([*late, ""]))
    spec = {
        # Through make, so that a kernel has the same settings as every other target (see `kernel` there).
        "argv": ["make", "-s", "-C", str(ROOT), "kernel", "CONNECTION_FILE={connection_file}"],
        "display_name": "Rust (iris-workshop)",
        "language": "rust",
        # evcxr listens for interrupts as messages; a signal would stop it for good.
        "interrupt_mode": "message",
        "env": {"EVCXR_CONFIG_DIR": str(KERNEL), "RUST_SRC_PATH": str(standard_library())},
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


def steps(rustc: str) -> list[Step]:
    """All there is to do, in the order in which a notebook needs it. What each usually takes was measured in November
    2026 on 2 cores of an AMD EPYC."""
    lock = [ROOT / "Cargo.lock", ROOT / "Cargo.toml", rustc]
    crates = {name: [path / "Cargo.toml", path / "src"] for name, path in CRATES.items()}
    library = digest(*lock, *crates["workshop"], *crates["iris_fn"], *crates["client"])
    # A kernel that is on the machine already is asked for its version by a tool of Python's.
    there = os.environ.get("EVCXR") or shutil.which("evcxr_jupyter") or (CARGO_HOME / "bin/evcxr_jupyter").exists()
    return [
        Step(
            "Python tools",
            digest(HERE / "requirements.txt", sys.version, str(ROOT)),
            VENV / "bin/jupyter",
            python_tools,
            usual=(50, 0),
            nice=0,
        ),
        Step("notebook library", library, LIBRARY, lambda: [cargo("--lib")], usual=(450, 351)),
        Step(
            "Rust kernel",
            digest(EVCXR, os.environ.get("EVCXR", "")),
            LINK,
            lambda: [[sys.executable, __file__, "install_kernel"]],
            usual=(600, 273),
            nice=0,
            after=("Python tools",) if there else (),
        ),
        Step(
            "kernel and JupyterLab settings",
            digest(HERE / "setup.py", HERE / "cell.c", HERE / "tokio", HERE / "jupyter_server_config.py", str(ROOT), rustc, library),
            KERNEL / "kernel.json",
            lambda: [[sys.executable, __file__, "configure_jupyter"]],
            after=("Python tools", "Rust kernel", "notebook library"),
        ),
        Step(
            "programs",
            digest(*lock, *crates["deploy"], *crates["client"], *crates["iris_fn"], *DEPLOY_FILES),
            BUILD / "deploy",
            lambda: [cargo("--bin=deploy", "--bin=client")],
            usual=(150, 30),
            after=("notebook library",),  # Cargo lets only one build at a time into a folder
        ),
        Step(
            "function", digest(*lock, *crates["iris_fn"]), BUILD / "bootstrap", lambda: [cargo("--bin=bootstrap")],
            after=("programs",),
        ),  # fmt: skip
    ]


CRATES = {"workshop": ROOT / "notebooks/workshop", **{name: ROOT / name for name in ("iris_fn", "deploy", "client")}}
DEPLOY_FILES = [
    ROOT / name
    for name in ("deploy/template.yaml", "deploy/deployer-policy.json", "data/iris.csv", "data/prices.json")
]


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if step := {"install_kernel": install_kernel, "configure_jupyter": configure_jupyter}.get("".join(arguments)):
            step()
            return 0
        rustc = rustc_version()
        check_tools(rustc)
        STAMPS.mkdir(parents=True, exist_ok=True)
        with (STAMPS / "lock").open("w") as lock:
            # Two at once: the second waits, and then finds everything done.
            fcntl.flock(lock, fcntl.LOCK_EX)
            # In their order: tools, library, kernel and settings; programs; function.
            count = {"notebooks": 4, "function": 6, "lambda": 5}.get(arguments[0] if arguments else "", 5)
            run = Run(steps(rustc)[:count])
            if run.waiting:
                share_cargo_settings()
                sealed("notebook")  # refused before anything is installed
                if BUNDLE.exists():
                    import bundle

                    bundle.check()
                    os.environ.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=(BUNDLE / "wheels").as_uri())
            run.go()
            if arguments == ["lambda"]:
                return build_for_lambda()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
