"""`make bundle`: all that a second machine of the same system needs, in one file, for a room without a network. There,
`setup.py` asks `check` whether it is such a system.

The second machine needs Python, a C compiler and make. Rust comes along where it is rustup's, which runs from any
folder. Nothing is compiled there but cells, and two small files for the kernel: what is built comes with the stamps by
which `setup.py` sees that it is done. Python's packages come as wheels, and .venv is made from them, because a .venv
knows its own folder. Of keys, certificates and the local cloud nothing is packed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from setup import BUILD, BUNDLE, HERE, LIBRARY, LINK, TARGET, VENV, host, rustc_version, sysroot
from steps import ROOT, STAMPS, SetupError

SYSTEM = BUNDLE / "system.json"
MAKING = TARGET / "bundle-in-the-making"
PATCHES = (0, 99)  # patch releases of this Python whose packages, together, fit all others
RUST = Path("target/rust")  # the Makefile finds it there


def system() -> dict[str, str]:
    """What must be the same on both machines."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"system": f"{platform.system()} {platform.machine()}", "Python": python, "rustc": rustc_version().strip()}


def check() -> None:
    """Raises `SetupError` when what was unpacked here was made on another system."""
    there, here = json.loads(SYSTEM.read_text()), system()
    libc = tuple(map(int, platform.libc_ver()[1].split(".") or [0]))
    for name, value in here.items():
        if there[name] != value:
            first, second = (text.partition("\n")[0] or "none" for text in (there[name], value))
            raise SetupError(
                f"This bundle was made with {name} {first}, and here it is {second}: install that, or clone the project and "
                f"run `make demo` with a network"
            )
    if libc < tuple(there["libc"]):
        raise SetupError(f"This bundle needs glibc {'.'.join(map(str, there['libc']))} or newer, as on the machine it was made on")


def lock(patch: int) -> Iterator[str]:
    """The lines of requirements.txt for that patch release of this Python. The same packages need not fit all of them:
    one that asks for 3.11.5 has another version for Debian's 3.11.2."""
    from packaging.markers import Marker

    release = {"python_full_version": "{}.{}.{}".format(*sys.version_info[:2], patch)}
    for line in (HERE / "requirements.txt").read_text().replace("\\\n", "").splitlines():
        pin, marker, hashes = re.fullmatch(r"(\S*)(?:\s*;\s*(.*?))?((?:\s+--hash\S*)*)\s*(?:#.*)?", line.strip()).groups()
        if pin and (marker is None or Marker(marker).evaluate(release)):
            yield pin + hashes


def rust() -> Iterator[tuple[Path, Path]]:
    """What compiles a cell, of the Rust that is used here. A distribution's stays: its parts lie all over the system."""
    root = sysroot()
    if not (root / "lib/rustlib/components").exists():
        return
    library = [f"lib/rustlib/src/rust/library/{name}/**/*" for name in ("core", "alloc", "std")]  # for completion
    licence = ["share/doc/rust/COPYRIGHT*", "share/doc/rust/licenses/*"]
    for pattern in ["bin/rustc", "bin/cargo", "lib/*.*", f"lib/rustlib/{host()}/**/*", *library, *licence]:
        yield from ((path, RUST / path.relative_to(root)) for path in root.glob(pattern) if path.is_file())


def contents() -> Iterator[tuple[Path, Path]]:
    """Each file, and its place in the project's folder."""
    # Only files that git tracks: no stray file, and no notes of a teacher.
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True, text=True)
    if git.returncode:
        raise SetupError(f"Git says which files belong to the project, and here it says: {git.stderr.strip()}")
    listed = git.stdout
    yield from ((ROOT / name, Path(name)) for name in listed.split("\0") if name and (ROOT / name).exists())
    built = [BUILD / name for name in ("deploy", "client", "bootstrap")]
    # For a cell the compiler reads the metadata of the library's crates; their code is in the library.
    crates = LIBRARY.parent
    built += [LIBRARY, *crates.glob("*.rmeta"), *crates.glob(f"*{LIBRARY.suffix}")]
    built += [path for path in crates.glob("*.rlib") if not path.with_suffix(".rmeta").exists()]
    built += [STAMPS / name for name in ("notebook-library", "programs", "function", "Rust-kernel")]
    yield from ((path, path.relative_to(ROOT)) for path in dict.fromkeys(built))
    for path in (MAKING / SYSTEM.name, *(MAKING / "wheels").iterdir()):
        yield path, (BUNDLE / path.relative_to(MAKING)).relative_to(ROOT)
    yield LINK.resolve(), LINK.relative_to(ROOT)
    yield from rust()


def pack() -> Path:
    """Write the bundle; gives back where. It appears whole or not at all."""
    name = f"iris-workshop-{platform.system()}-{platform.machine()}".lower()
    archive = TARGET / f"{name}.tar.gz"
    part = archive.with_suffix(".part")
    shutil.rmtree(MAKING, ignore_errors=True)
    try:
        wheels()
        libc = [int(number) for number in platform.libc_ver()[1].split(".") if number]
        (MAKING / SYSTEM.name).write_text(json.dumps({**system(), "libc": libc}, indent=1))
        files = list(contents())
        size, done, printed = sum(path.stat().st_size for path, _ in files), 0, -1
        with tarfile.open(part, "w:gz", compresslevel=1) as tar:
            for path, place in files:
                tar.add(path, Path("iris-workshop") / place, filter=anonymous)
                done += path.stat().st_size
                if (tenth := 10 * done // size) > printed:
                    printed = tenth
                    print(f"bundle: {done / 1e6:5.0f} of {size / 1e6:.0f} MB", flush=True)
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)
        shutil.rmtree(MAKING, ignore_errors=True)
    return archive


def wheels() -> None:
    """Python's packages, each checked against its hash."""
    folder = MAKING / "wheels"
    folder.mkdir(parents=True)
    download = [VENV / "bin/python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    download += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--dest", folder]
    for part, patch in enumerate(PATCHES, 1):
        print(f"bundle: Python's packages, {part} of {len(PATCHES)} …", flush=True)
        (MAKING / "lock").write_text("\n".join(lock(patch)))
        if subprocess.run([*download, "-r", MAKING / "lock"], check=False).returncode:
            raise SetupError("Python's packages could not be downloaded: check the network, then make bundle again")


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever unpacks it owns it."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> int:
    try:
        if BUNDLE.exists():
            raise SetupError("this folder comes from a bundle: copy the file it came from")
        archive = pack()
    except (SetupError, subprocess.CalledProcessError, OSError) as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bundle: stopped, and nothing is left of it", file=sys.stderr)
        return 130
    print(f"{archive.relative_to(ROOT)}  {archive.stat().st_size / 1e6:.0f} MB; on the second machine:")
    print(f"  tar xf {archive.name} && cd iris-workshop && make demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
