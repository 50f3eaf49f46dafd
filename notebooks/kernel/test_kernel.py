"""The kernel: two notebooks open at once, the stop button, and what each kind of failing cell says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from run import ROOT, Session, kernel_specs


def session(folder: Path) -> Session:
    """A session on an empty notebook."""
    return Session(new_notebook(), kernel_specs(), 60, folder / "kernel.log")


async def trouble(session: Session, code: str, tag: str = "plain") -> str:
    """What is wrong with a cell, run after those before it."""
    session.nb.cells.append(new_code_cell(code, metadata={"tags": [tag]}))
    return await session.run_cell(session.nb.cells[-1])


async def printed(session: Session, code: str) -> str:
    """What a good cell prints."""
    assert await trouble(session, code) == ""
    return "".join(output.text for output in session.nb.cells[-1].outputs)


def test_two_notebooks_are_open_at_once_and_each_ends_by_itself(tmp_path: Path) -> None:
    async def both() -> None:
        one, two = session(tmp_path), session(tmp_path)
        async with one.kernel(ROOT), two.kernel(ROOT):
            for kernel in (one, two):
                await printed(kernel, "use workshop::*;")
            assert await printed(one, "let a: i32 = 1; println!(\"{}\", iris_fn::model::SCHEMA);") == "2\n"
            assert await printed(two, "let a: i32 = 2; println!(\"{}\", iris_fn::model::MAX_FEATURES);") == "256\n"
            assert "the kernel died" in await trouble(two, "!kill -9 $PPID")
            assert await printed(one, 'println!("{a}");') == "1\n"
            assert "printed more than 250,000" in await trouble(one, 'loop { println!("again and again"); }')

    asyncio.run(both())


FAILING = {
    'let a: i32 = "x";': ["mismatched types", "expected `i32`"],
    'let n: i32 = "x".parse::<i32>()?;': ["invalid digit found in string", "stderr"],
    'eprintln!("only a warning");': ["only a warning", "stderr"],
    "!false": ["Shell command failed with exit code 1"],
    "std::io::stdin().read_line(&mut String::new())?;": ["a cell cannot read input: write the value into the cell"],
    'panic!("no apples");': ["no apples", "Subprocess terminated"],
}


def test_each_failing_cell_says_why_and_an_interrupted_kernel_keeps_its_functions(tmp_path: Path) -> None:
    async def fail() -> None:
        kernel = session(tmp_path)
        async with kernel.kernel(ROOT):
            assert await printed(kernel, "fn double(x: i32) -> i32 { 2 * x }") == ""
            for code, complaints in FAILING.items():
                found = await trouble(kernel, code, tag="raises-exception")  # which is no excuse
                assert [text for text in complaints if text not in found] == [], found
            running = tmp_path / "running"
            looping = asyncio.create_task(trouble(kernel, f'std::fs::write("{running}", "")?; loop {{}}'))
            while not running.exists():
                await asyncio.sleep(0.1)
            await kernel.km.interrupt_kernel()
            output = await looping
            assert "interrupted\nThe kernel's process has ended and its variables are lost" in output, output
            assert "SIGKILL" not in output
            assert await printed(kernel, 'println!("{}", double(21));') == "42\n"
            kernel.timeout = 2
            assert "it took longer than 2 s" in await trouble(kernel, "loop {}")

    asyncio.run(fail())
