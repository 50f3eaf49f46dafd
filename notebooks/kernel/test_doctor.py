"""The doctor: each thing that can be wrong is named with its next step, and nothing is changed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import doctor
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "deploy/tests"))

from test_local import free_ports  # noqa: E402


@pytest.fixture
def cloud(tmp_path):
    """The settings of a local cloud that does not run, on free ports."""
    names = dict(zip(("GATEWAY_PORT", "IOT_MTLS_PORT"), map(str, free_ports(2))))
    return doctor.local.Settings({**names, "LOCAL_DIR": str(tmp_path)})


def test_an_old_rust_and_a_missing_compiler_each_have_a_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor.setup, "rustc_version", lambda: "release: 1.94.1\n")
    compilers = ("cc", "gcc", "clang")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name in compilers else f"/bin/{name}")
    monkeypatch.delenv("CC", raising=False)
    healthy = list(doctor.tools())
    out = capsys.readouterr().out
    assert healthy.count(False) == 2 and "rustup update stable" in out and "build-essential" in out


def test_a_full_disk_and_little_memory(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Full)
    monkeypatch.setattr(doctor.Path, "read_text", lambda *_: "MemTotal: 1 kB\nMemAvailable: 1000000 kB\n")
    assert [*doctor.disk(), doctor.memory()] == [False, False, False]
    assert capsys.readouterr().out.count("next: ") == 3


class Full:
    free = 1e8


def test_a_temporary_folder_from_which_nothing_runs(monkeypatch, capsys):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    assert doctor.temporary()
    monkeypatch.setattr(doctor.subprocess, "run", refused)
    assert not doctor.temporary()
    assert "export TMPDIR" in capsys.readouterr().out


def test_a_port_that_somebody_else_has(cloud, capsys, monkeypatch):
    monkeypatch.setenv("LIVE_PORT", str(cloud.mqtt + 1 if cloud.mqtt < 65535 else 1025))
    with socket.socket() as other:
        other.bind(("127.0.0.1", cloud.gateway))
        other.listen()
        assert list(doctor.ports(cloud))[:2] == [False, True]
    assert "choose another with GATEWAY_PORT=" in capsys.readouterr().out
    monkeypatch.setenv("LIVE_PORT", "x")
    assert list(doctor.ports(cloud)) == [False]


def test_the_local_cloud_of_this_folder_may_have_its_ports(cloud, monkeypatch):
    monkeypatch.setattr(doctor.local, "running", lambda _: cloud.ports)
    with socket.socket() as other:
        other.bind(("127.0.0.1", cloud.gateway))
        other.listen()
        assert list(doctor.ports(cloud))[:2] == [True, True]


def test_registries_that_do_not_answer(monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert list(doctor.network()) == [False]
    assert "http://127.0.0.1:1/simple/pip/" in capsys.readouterr().out


def test_it_ends_with_1_when_anything_is_wrong_and_changes_nothing(cloud, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    settings = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "LOCAL_DIR": str(tmp_path), "TARGET": "local"}
    settings |= {name: str(port) for name, port in cloud.ports.items()}
    done = subprocess.run(
        [sys.executable, ROOT / "notebooks/kernel/doctor.py"], env=os.environ | settings, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "NOT OK         PyPI" in done.stdout, done.stdout + done.stderr
    assert done.stderr == "" and sorted(tmp_path.rglob("*")) == before
