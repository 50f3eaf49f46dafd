"""The set-up, with stand-ins for what it would download or build."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import setup
import steps

REAL, CARGO = setup.LINK.resolve(), shutil.which("cargo")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any evcxr, on which building one leaves a note instead."""
    monkeypatch.setattr(setup, "LINK", tmp_path / "evcxr_jupyter")
    monkeypatch.setattr(setup, "TARGET", tmp_path / "target")
    monkeypatch.setattr(setup, "CACHED", tmp_path / "cache/evcxr/bin/evcxr_jupyter")
    monkeypatch.setattr(setup, "CARGO_HOME", tmp_path / "cargo")
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo"))
    others = [folder for folder in os.environ["PATH"].split(":") if not Path(folder, "evcxr_jupyter").exists()]
    monkeypatch.setenv("PATH", ":".join([str(tmp_path / "bin"), *others]))
    monkeypatch.delenv("EVCXR", raising=False)
    # A kernel that is asked for its version compiles a line, so all else goes to the real one.
    install = f'*install) echo "$@" >> {tmp_path}/cargo.log; exit 101'
    program(tmp_path / "bin/cargo", f'case "$1" in {install};; *) exec {CARGO} "$@";; esac')
    return tmp_path


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def built(machine):
    """What Cargo was asked to do."""
    log = machine / "cargo.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize("place", ["bin/evcxr_jupyter", "cargo/bin/evcxr_jupyter"])
def test_an_evcxr_of_the_same_version_is_used(machine, place):
    there = machine / place
    there.parent.mkdir(parents=True, exist_ok=True)
    there.symlink_to(REAL)
    setup.install_kernel()
    assert setup.LINK.readlink() == there and not built(machine)
    # On a new machine, what asks for its version must be there first.
    assert {step.name: step.after for step in setup.steps("")}["Rust kernel"] == ("Python tools",)


def test_the_one_from_an_earlier_set_up_is_used(machine):
    program(setup.CACHED, "exit 1")
    setup.install_kernel()
    assert setup.LINK.readlink() == setup.CACHED and not built(machine)


def test_evcxr_names_one(machine, monkeypatch):
    program(setup.CACHED, "exit 1")
    monkeypatch.setenv("EVCXR", str(REAL))
    setup.install_kernel()
    assert setup.LINK.readlink() == REAL


@pytest.mark.parametrize("what", ["/nowhere", "/bin/true"])
def test_an_evcxr_that_is_named_and_is_none_is_refused(machine, monkeypatch, what):
    monkeypatch.setenv("EVCXR", what)
    with pytest.raises(setup.SetupError, match=f"EVCXR={what} is not an evcxr_jupyter, and {setup.EVCXR} is needed"):
        setup.install_kernel()


def test_an_evcxr_of_another_version_is_passed_over(machine, monkeypatch):
    (machine / "bin/evcxr_jupyter").symlink_to(REAL)
    monkeypatch.setattr(setup, "EVCXR", "9.9.9")
    with pytest.raises(SystemExit):
        setup.install_kernel()
    assert "install evcxr_jupyter --version 9.9.9 --locked" in built(machine)


def test_cargo_binstall_is_asked_before_building(machine):
    program(machine / "bin/cargo-binstall", "")
    program(
        machine / "bin/cargo",
        f'echo "$@" >> {machine}/cargo.log\n'
        'while [ "$1" != --root ]; do shift; done\nmkdir -p "$2/bin" && touch "$2/bin/evcxr_jupyter"',
    )
    setup.install_kernel()
    assert setup.LINK.readlink() == setup.CACHED
    assert built(machine).startswith("binstall ") and built(machine).count("\n") == 1


def test_when_binstall_finds_nothing_it_is_built(machine):
    program(machine / "bin/cargo-binstall", "")
    with pytest.raises(SystemExit) as end:
        setup.install_kernel()
    assert end.value.code == 101  # Cargo's own
    assert [line.split()[0] for line in built(machine).splitlines()] == ["binstall", "install"]


# ---- steps -------------------------------------------------------------------------------------------------


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    for name in ("STAMPS", "TIMES"):
        monkeypatch.setattr(steps, name, tmp_path / name.lower())
    return tmp_path


def step(folder, name, *commands, after=()):
    return steps.Step(name, "1", folder / name, lambda: [["sh", "-c", c] for c in commands], after=after)


def test_steps_run_side_by_side_in_their_order_and_once(stamps, capsys):
    def three():
        # `a` and `b` each wait for the other to begin: one after the other, they would never end.
        meet = "touch {0}.on; while ! test -e {1}.on; do sleep 0.05; done; touch {0}"
        a, b, c = (stamps / name for name in "abc")
        return [
            step(stamps, "a", meet.format(a, b)),
            step(stamps, "b", meet.format(b, a)),
            step(stamps, "c", f"test -e {a} && touch {c}", after=("a",)),
        ]

    steps.Run(three()).go()
    assert capsys.readouterr().out.count("setup: ") == 6
    steps.Run(three()).go()
    assert capsys.readouterr().out == ""
    (stamps / "b").unlink()
    steps.Run(three()).go()
    assert capsys.readouterr().out.startswith("setup: b …")


def test_a_failure_shows_its_first_error_ends_the_others_and_blames_only_what_it_is(stamps):
    slow = step(stamps, "slow", f"echo $$ > {stamps}/pid; sleep 60")
    errors = "echo noise; echo 'error: rustc 1.95 is required'; for i in $(seq 99); do echo detail $i; done; exit 3"
    with pytest.raises(steps.SetupError) as error:
        steps.Run([slow, step(stamps, "bad", f"while ! test -s {stamps}/pid; do sleep 0.05; done; {errors}")]).go()
    assert str(error.value).startswith("    error: rustc 1.95 is required\n    detail 1\n")
    assert "bad: sh failed with exit code 3" in str(error.value) and "network" not in str(error.value)
    with pytest.raises(ProcessLookupError):
        os.kill(int((stamps / "pid").read_text()), 0)
    with pytest.raises(setup.SetupError, match="needs the network once"):
        steps.Run([step(stamps, "bad", "echo 'error: failed to download from the registry'; exit 1")]).go()


def test_builds_side_by_side_share_one_jobserver(stamps, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    # Two builds have a job each without asking, and share a token for each core.
    count = "import os,re; r=re.search(r'auth=(\\d+)', os.environ['CARGO_MAKEFLAGS'])[1]; print(os.read(int(r), 9))"
    a = step(stamps, "a", f'sleep 0.3; {sys.executable} -c "{count}"; touch {stamps}/a; sleep 0.5')
    b = step(stamps, "b", f"touch {stamps}/b; sleep 0.5")
    steps.Run([a, b]).go()
    assert "b'+++'" in a.log.read_text()


@pytest.mark.parametrize("number", ["INT", "TERM"])
def test_a_signal_ends_what_runs_and_says_how_to_go_on(tmp_path, number):
    """The real set-up in a clone of its own, with stand-ins for rustc and Cargo."""
    clone = tmp_path / "clone"
    shutil.copytree(setup.HERE, clone / "notebooks/kernel", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Cargo.toml", "Cargo.lock", "data", "deploy", "iris_fn", "client", "notebooks/workshop"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).symlink_to(setup.ROOT / name)
    program(tmp_path / "bin/rustc", "echo release: 1.95.0")
    program(tmp_path / "bin/cargo", f'case "$1" in -Z*) exit;; esac; echo $$ >> {tmp_path}/pids; exec sleep 60')
    # No cache, and no evcxr in Cargo's bin, which would have the kernel wait for Python's tools.
    homes = {name: str(tmp_path / name) for name in ("XDG_CACHE_HOME", "CARGO_HOME")}
    environment = {**os.environ, **homes, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    process = subprocess.Popen(
        [sys.executable, clone / "notebooks/kernel/setup.py"], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = tmp_path / "pids"
    deadline = time.monotonic() + 30
    while not pids.exists() or pids.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(setup.signal, f"SIG{number}"))
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "setup: stopped; the same command continues from here\n")
    deadline = time.monotonic() + 5
    while not all(map(ended, pids.read_text().split())):
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.05)


def ended(pid):
    """Whether the process is gone, or a zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_old_rust_is_named_before_anything_is_installed(monkeypatch):
    with pytest.raises(setup.SetupError, match=r"Rust 1\.95 or newer is needed: rustup update .*this is 1\.94\.1"):
        setup.check_tools("rustc 1.94.1\nrelease: 1.94.1\n")
    setup.check_tools("release: 1.95.0\n")
    manifest = (Path(setup.ROOT) / "Cargo.toml").read_text()
    assert f'rust-version = "{".".join(map(str, setup.RUST))}"' in manifest
