"""What `make bundle` packs and refuses; at full size, a second machine without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import bundle
import pytest
import setup
from doctor import local
from setup import CARGO_HOME, SetupError
from steps import CACHE
from test_notebooks import ROOT
from test_situations import Clone


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's bundle is made."""
    monkeypatch.setattr(bundle, "BUNDLE", tmp_path / "bundle")
    monkeypatch.setattr(bundle, "SYSTEM", tmp_path / "bundle/system.json")
    monkeypatch.setattr(bundle, "MAKING", tmp_path / "making")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "making/wheels").mkdir(parents=True)
    return tmp_path


def test_nothing_private_is_packed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "BUNDLE", ROOT / "target/bundle")
    secret = ROOT / "target/devices/local/key.pem"
    secret.parent.mkdir(parents=True, exist_ok=True)
    stray = ROOT / "stray-of-a-test.pem"
    try:
        for each in (secret, stray):
            each.touch()
        places = {place.as_posix() for _, place in bundle.contents()}
    finally:
        for each in (secret, stray):
            each.unlink()
    built = {each for each in places if each.startswith("target/") and not each.startswith("target/rust/")}
    assert {"Makefile", "data/iris.csv", "target/setup/evcxr_jupyter", "target/notebook/deploy"} <= places
    assert {Path(each).parent.as_posix() for each in built} <= {
        "target/bundle", "target/notebook", "target/notebook/deps", "target/setup",
    }  # fmt: skip
    assert not [each for each in places - built if each.endswith(".pem") and "amazon-roots" not in each]
    assert not [each for each in places if each.startswith((".git/", ".venv/")) or "cargo.env" in each]
    # Of Rust, what compiles a cell, and no credentials or downloads, which are beside it.
    rust = {each.removeprefix("target/rust/") for each in places if each.startswith("target/rust/")}
    assert {"bin/rustc", "bin/cargo"} <= rust and {each.split("/")[0] for each in rust} <= {"bin", "lib", "share"}


def test_the_wheels_fit_each_release_of_this_python() -> None:
    packed = {line for patch in bundle.PATCHES for line in bundle.lock(patch)}
    assert all("==" in line and "--hash=" in line for line in packed) and "jupyterlab" in " ".join(packed)
    for patch in range(1, 30):
        assert set(bundle.lock(patch)) <= packed


def test_a_distributions_rust_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess("", 0, stdout=f"{tmp_path}\n"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rustc").touch()
    assert list(bundle.rust()) == []


@pytest.mark.parametrize("name", ["system", "Python", "rustc"])
def test_another_system_is_refused_with_what_differs(place: Path, name: str) -> None:
    there = {**bundle.system(), "libc": [2, 0]}
    bundle.SYSTEM.write_text(json.dumps(there))
    bundle.check()
    bundle.SYSTEM.write_text(json.dumps({**there, name: "another\nof them"}))
    with pytest.raises(SetupError, match=f"made with {name} another, and here it is .+: install that, or clone"):
        bundle.check()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no glibc")
def test_so_is_an_older_c_library(place: Path) -> None:
    bundle.SYSTEM.write_text(json.dumps({**bundle.system(), "libc": [99, 1]}))
    with pytest.raises(SetupError, match="needs glibc 99.1 or newer"):
        bundle.check()


@pytest.mark.parametrize("when", ["packages", "packing"])
def test_ctrl_c_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert list(place.glob("*.part" if when == "packing" else "making/wheels"))
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "TARGET", place)
    (place / "bundle").rmdir()
    monkeypatch.setattr(bundle.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess("", 0, stdout="Makefile\0"))
    monkeypatch.setattr(bundle, "contents", lambda: [(ROOT / "Makefile", Path("Makefile"))])
    owner, function = (tarfile.TarFile, "add") if when == "packing" else (bundle.subprocess, "run")
    monkeypatch.setattr(owner, function, interrupted)
    assert bundle.main([]) == 130 and list(place.iterdir()) == []
    assert capsys.readouterr().err == "bundle: stopped, and nothing is left of it\n"


def test_without_network_or_git_it_says_so_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle, "TARGET", place)
    (place / "bundle").rmdir()
    monkeypatch.setattr(bundle, "system", dict)
    answers = iter([1, 0, 0, 128])
    run = lambda *_, **__: subprocess.CompletedProcess("", next(answers), "", "fatal: not a git repository")  # noqa: E731
    monkeypatch.setattr(bundle.subprocess, "run", run)
    assert bundle.main([]) == 1 and "check the network, then make bundle again" in capsys.readouterr().err
    assert bundle.main([]) == 1 and "here it says: fatal: not a git repository" in capsys.readouterr().err
    assert list(place.iterdir()) == []


def test_a_bundle_is_not_made_of_a_bundle(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bundle.main([]) == 1 and "copy the file it came from" in capsys.readouterr().err


def test_rust_from_a_bundle_comes_first_for_the_programs_and_the_deployed_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = Clone(tmp_path / "clone")
    assert "LD_LIBRARY_PATH" not in clone.environment()
    rust = clone.folder / "target/rust"
    library = rust / "lib/rustlib/here/lib"
    for folder in (rust / "bin", library, clone.folder / "target/bundle"):
        folder.mkdir(parents=True)
    seen = clone.environment()
    assert seen["PATH"].startswith(f"{clone.folder}/.venv/bin:{rust}/bin:") and seen["LD_LIBRARY_PATH"] == str(library)

    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setattr(local, "BUNDLE", str(tmp_path / "none"))
    assert "LD_LIBRARY_PATH" not in local.Settings({}).environment()  # the user's own
    monkeypatch.setattr(local, "BUNDLE", str(clone.folder / "target/bundle"))
    assert local.Settings({}).environment()["LD_LIBRARY_PATH"] == str(library)


def test_a_bundle_builds_nothing_for_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "TARGET", tmp_path)
    (tmp_path / "rust").mkdir()
    with pytest.raises(SetupError, match="clone the project"):
        setup.build_for_lambda()


@pytest.mark.skipif("FULL" not in os.environ, reason="0.7 GB: make test-all")
@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="only root may take the network away")
def test_a_second_machine_without_a_network_compiles_nothing_but_cells(tmp_path: Path) -> None:
    """Another folder, an empty home, no interface but loopback, and nothing that was here before."""
    subprocess.run(["make", "bundle"], cwd=ROOT, check=True)
    [archive] = (ROOT / "target").glob("iris-workshop-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "home").mkdir()
    rustc = tmp_path / "iris-workshop/target/rust/bin/rustc"
    rustc.rename(rustc.with_name("rustc.real"))
    rustc.write_text('#!/bin/sh\necho "$@" >> /mnt/rustc\nexec "$0.real" "$@"\n')
    rustc.chmod(0o755)
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    hide = [f"mount -t tmpfs none '{each}'" for each in (sysroot, CARGO_HOME, CACHE, ROOT) if Path(each).exists()]
    steps = ["ip link set lo up", f"mount --bind '{tmp_path}' /mnt", *hide, "cd /mnt/iris-workshop"]
    command = " && ".join(steps) + " && ! rustc --version && { make demo; code=$?; make stop; exit $code; }"
    path = f"{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin:/usr/sbin:/sbin"
    second = ["unshare", "--net", "--mount", "env", "-i", f"PATH={path}", "HOME=/mnt/home", "LANG=C.UTF-8", "sh", "-c", command]
    done = subprocess.run(second, check=False, timeout=900)
    summary = json.loads((tmp_path / "iris-workshop/target/demo.json").read_text())
    assert done.returncode == 0 and summary["predictions"]["answered"] == 150
    lines = [line.split() for line in (tmp_path / "rustc").read_text().splitlines()]
    compiled = {words[words.index("--crate-name") + 1] for words in lines if "--crate-name" in words}
    assert "ctx" in compiled
    assert compiled <= {"ctx", "tokio", "___"} | {name for name in compiled if name.startswith(("code_", "build_script"))}, compiled
