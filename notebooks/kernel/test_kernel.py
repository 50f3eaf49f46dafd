"""The kernel as JupyterLab uses it: two notebooks open at once, and the stop button."""

from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from run import kernel_specs

pytestmark = pytest.mark.usefixtures("specs")
SECONDS = 60


@pytest.fixture
def specs() -> KernelSpecManager:
    """The kernels of this .venv, as run.py sees them."""
    return kernel_specs()


@contextmanager
def kernel(specs: KernelSpecManager) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A running kernel and a client that talks to it."""
    manager = KernelManager(kernel_name="rust", kernel_spec_manager=specs)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> str:
    """What a cell prints, or the error it ends with."""
    printed: list[str] = []

    def keep(message: dict) -> None:
        content = message["content"]
        printed.append(content.get("text") or content.get("evalue") or "")

    client.execute_interactive(code, timeout=SECONDS, output_hook=keep)
    return "".join(printed)


def test_two_notebooks_are_open_at_once_and_both_work(specs: KernelSpecManager) -> None:
    with kernel(specs) as (_, one), kernel(specs) as (_, two):
        for client in (one, two):
            run(client, "use workshop::*;")
        assert run(one, "let a: i32 = 1; println!(\"{}\", iris_fn::model::FEATURES);") == "4\n"
        assert run(two, "let a: i32 = 2; println!(\"{}\", iris_fn::model::CLASSES);") == "3\n"
        assert run(one, 'println!("{a}");') == "1\n"


def test_an_interrupted_kernel_lives_and_keeps_its_functions(specs: KernelSpecManager) -> None:
    with kernel(specs) as (manager, client):
        run(client, "fn double(x: i32) -> i32 { 2 * x }")
        client.execute('println!("started"); loop {}')
        while client.get_iopub_msg(timeout=SECONDS)["content"].get("text") != "started\n":
            pass
        manager.interrupt_kernel()
        client.get_shell_msg(timeout=SECONDS)  # the interrupted cell has ended
        with pytest.raises(Empty):
            while True:
                client.get_iopub_msg(timeout=1)
        assert run(client, 'println!("{}", double(21));') == "42\n"
