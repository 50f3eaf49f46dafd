"""The Dockerfile, without a container engine: its list of packages and files, and, with FULL=1, all of its steps in a
bare Debian (as root, with debootstrap and the network; 20 minutes on 2 cores)."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import setup

ROOT = setup.ROOT
sys.path.append(str(ROOT / "deploy/tests"))

from test_local import free_ports  # noqa: E402

IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]


def instructions():
    """The Dockerfile as pairs, such as ("RUN", "make build")."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", "").splitlines() if line]


def argument(instruction):
    return next(rest for name, rest in instructions() if name == instruction)


def packages():
    return re.search(r"--no-install-recommends ((?:[a-z0-9-]+ )+)", argument("RUN"))[1].split()


def test_what_is_installed_is_what_the_readme_asks_for():
    asked = re.search(r"On the machine: (.*?), and the network", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    means = {"Python 3.10 or newer (with venv)": {"python3", "python3-venv"}, "a C compiler": {"gcc", "libc6-dev"}, "`make`": {"make"}}
    rust, *others = re.split(r",\s+", asked)
    assert rust == f"Rust {'.'.join(map(str, setup.RUST))} or newer" and f"rust:{'.'.join(map(str, setup.RUST))}." in argument("FROM")
    assert set(packages()) == set.union(*(means[other] for other in others))


def test_it_runs_as_somebody_else_than_root_and_asks_for_a_token():
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("COPY") and argument("USER") != "root"
    command = json.loads(argument("CMD"))
    assert command[:2] == ["make", "lab"] and "--ip=0.0.0.0" in command[2] and "token" not in command[2]


def test_nothing_that_git_ignores_gets_into_the_image():
    git = (ROOT / ".gitignore").read_text().split()
    assert {".git", *(name.strip("/") if "/" in name.rstrip("/") else f"**/{name.strip('/')}" for name in git)} <= set(IGNORED)


def test_the_dev_container_uses_what_there_is():
    file = ROOT / ".devcontainer/devcontainer.json"
    container = json.loads(file.read_text())
    assert (file.parent / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (file.parent / container["build"]["context"]).resolve() == ROOT
    assert str(container["forwardPorts"][0]) == argument("EXPOSE") and set(container["portsAttributes"]) == set(
        map(str, container["forwardPorts"])
    )
    # What the image has built lies where the command looks for it.
    assert argument("WORKDIR") == f"/home/{argument('USER')}/iris-workshop"
    assert "~/iris-workshop/target" in container["postCreateCommand"]
    for command in (container["postCreateCommand"], container["postAttachCommand"]):
        target = re.search(r"\bmake ([a-z]+)", command)[1]
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Debian:
    """A bare Debian in a folder, and the Dockerfile's steps in it, as an engine would run them."""

    def __init__(self, folder):
        self.folder, self.user, self.workdir = folder, "root", "/"
        self.rust = "/usr/local/rustup/bin"
        # It shares this machine's network.
        self.ports = dict(zip(("GATEWAY_PORT", "IOT_MTLS_PORT"), map(str, free_ports(2))))

    def command(self, line):
        """Processes end with the first one, mounts with them: nothing is left."""
        mount = 'mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot --userspec="$1" "$0" env -i "${@:2}"'
        environment = {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}
        environment |= {"PATH": f"{self.rust}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CARGO_HOME": "/usr/local/cargo"}
        environment |= {"HOME": "/root" if self.user == "root" else f"/home/{self.user}", "DEBIAN_FRONTEND": "noninteractive"}
        environment |= self.ports | dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "CARGO_HTTP_CAINFO"), "/certificates")
        inside = ["bash", "-c", mount, self.folder, self.user, *(f"{k}={v}" for k, v in environment.items())]
        inside += ["sh", "-c", f"cd {shlex.quote(self.workdir)} && {line}"]
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *map(str, inside)]

    def run(self, line):
        print(f"==> {line}", flush=True)
        subprocess.run(self.command(line), check=True, stdin=subprocess.DEVNULL)

    def step(self, name, rest):
        if name == "FROM":
            self.base(rest.rpartition("-")[2])
        elif name == "RUN":
            self.run(rest)
        elif name == "USER":
            self.user = rest
        elif name == "WORKDIR":
            self.workdir = rest
            (self.folder / rest[1:]).mkdir(parents=True)
        elif name == "COPY":
            self.copy()

    def base(self, suite):
        """What the base image has: Debian, and Rust where that image keeps it."""
        subprocess.run(["debootstrap", "--variant=minbase", suite, self.folder], check=True, stdout=subprocess.DEVNULL)
        shutil.copy("/etc/resolv.conf", self.folder / "etc")
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self.folder / "certificates")  # with those of a proxy here
        place = (self.folder / self.rust[1:]).parent
        shutil.copytree(setup.sysroot(), place, symlinks=True, ignore=shutil.ignore_patterns("share", "rust-src"))
        registry = setup.CARGO_HOME / "registry"  # what has been downloaded before
        cargo = self.folder / "usr/local/cargo"
        cargo.mkdir()
        if registry.exists():
            subprocess.run(["cp", "-a", registry, cargo], check=True)
        subprocess.run(["chmod", "-R", "a+rwX", place, cargo], check=True)

    def copy(self):
        there = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, there.split("\0")):
            assert not any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED)
            to = self.folder / self.workdir[1:] / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to)
        subprocess.run(["chroot", self.folder, "chown", "-R", f"{self.user}:", self.workdir], check=True)

    def start(self):
        """What the image starts answers whoever has the token, and nobody else."""
        command = self.command("timeout 120 " + shlex.join(json.loads(argument("CMD"))))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as lab:
            try:
                output = ""
                while not (found := re.search(r"(http://127\.0\.0\.1:(\d+))/lab\S*\?token=(\w+)", output)):
                    output += (line := lab.stdout.readline())
                    assert line, output  # it has ended
                address, port, token = found.groups()
                while lab.poll() is None:  # it says so a little before it listens
                    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                        break
                with pytest.raises(HTTPError, match="403"):
                    urlopen(f"{address}/api/contents?token=not{token}", timeout=30)
                assert urlopen(f"{address}/api/contents?token={token}", timeout=30).status == 200
            finally:
                # The first process of a namespace takes all others along.
                for first in Path(f"/proc/{lab.pid}/task/{lab.pid}/children").read_text().split():
                    os.kill(int(first), signal.SIGKILL)


@pytest.mark.skipif("FULL" not in os.environ, reason="20 minutes: make test-all")
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("debootstrap"), reason="needs root and debootstrap")
def test_its_steps_build_all_in_a_bare_debian_and_end_in_a_jupyterlab_that_asks_for_its_token():
    folder = setup.TARGET / "container"
    subprocess.run(["rm", "-rf", folder], check=True)
    debian = Debian(folder)
    try:
        for name, rest in instructions():
            debian.step(name, rest)
        debian.run("make demo && make stop")
        debian.start()
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)
