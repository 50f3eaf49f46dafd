"""CSV files as people have them: what `client predict` prints for each, as a person has reviewed it.

`files/` has the files, and `files.txt` has how each is read and what is answered. After an intended change, run this and
review the difference: the new output is in target/files.txt.
"""

import re
import subprocess
from pathlib import Path

from clients import CLIENT, ROOT
from stand_in import StandIn

FILES = Path(__file__).with_name("files")
EXPECTED, PRINTED = FILES.with_suffix(".txt"), ROOT / "target/files.txt"
HEAD = "What `client predict` prints for each file in files/, without times; test_files.py compares.\n"


def printed(folder, file):
    """Exit code, standard error, and the answers."""
    command = [CLIENT, "--dir", folder, "predict", "--device", "live", "--pace", "1000", "--csv", file.name]
    done = subprocess.run(command, cwd=FILES, capture_output=True, text=True, timeout=30)
    lines = re.sub(r" +[\d.]+ ms$", "", done.stdout, flags=re.M).splitlines()
    # In any order, and in one line.
    rows = sorted(" ".join(line.split()).partition("-")[2] for line in lines if re.match(r"\w{8}-", line))
    rest = [line for line in lines if not re.match(r"\w{8}-|round trip", line)]
    printed = [f"== {file.name}: exit {done.returncode}", *done.stderr.splitlines(), "; ".join(rows), *rest]
    return "\n" + "".join(f"{line}\n" for line in printed if line)


def test_every_file_has_the_right_answer_or_the_right_sentence(tmp_path):
    with StandIn(tmp_path) as broker:
        text = HEAD + "".join(printed(tmp_path, file) for file in sorted(FILES.iterdir()))
    PRINTED.write_text(text)
    assert text == EXPECTED.read_text(), f"read: diff {EXPECTED} {PRINTED}"
    assert broker.connections
