"""What the tests of the cloud path share."""

import pytest
from clients import MODEL, ROOT, run


@pytest.fixture(scope="session")
def model():
    """The bytes of target/model.json, made by notebook 01."""
    if not MODEL.exists():
        code, out, err = run(ROOT / ".venv/bin/python", "notebooks/kernel/run.py", "notebooks/01_train.ipynb")
        assert code == 0, out + err
    return MODEL.read_bytes()
