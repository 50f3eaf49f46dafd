"""CSV files as people have them: what `client predict` says to each, as a person has read it.

`files/` holds them, and `files.txt` for each what is understood, asked and answered. After a change that is meant, run
this and read the difference: what was said lies in target/files.txt.
"""

import re
import subprocess
from pathlib import Path

from clients import CLIENT, ROOT
from stand_in import StandIn

FILES = Path(__file__).with_name("files")
EXPECTED, SAID = FILES.with_suffix(".txt"), ROOT / "target/files.txt"
HEAD = "What `client predict` says to each of the files beside this, without times; test_files.py compares.\n"


def said(folder, file):
    """Exit code, what is said on standard error, and the answers."""
    command = [CLIENT, "--dir", folder, "predict", "--device", "live", "--pace", "1000", "--csv", file.name]
    done = subprocess.run(command, cwd=FILES, capture_output=True, text=True, timeout=30)
    lines = re.sub(r" +[\d.]+ ms$", "", done.stdout, flags=re.M).splitlines()
    # In any order, and in one line.
    rows = sorted(" ".join(line.split()).partition("-")[2] for line in lines if re.match(r"\w{8}-", line))
    rest = [line for line in lines if not re.match(r"\w{8}-|round trip", line)]
    said = [f"== {file.name}: exit {done.returncode}", *done.stderr.splitlines(), "; ".join(rows), *rest]
    return "\n" + "".join(f"{line}\n" for line in said if line)


def test_every_file_has_the_right_answer_or_the_right_sentence(tmp_path):
    with StandIn(tmp_path) as broker:
        text = HEAD + "".join(said(tmp_path, file) for file in sorted(FILES.iterdir()))
    SAID.write_text(text)
    assert text == EXPECTED.read_text(), f"read: diff {EXPECTED} {SAID}"
    assert broker.connections
