"""What the tests of the cloud path share."""

import pytest
from clients import trained_model


@pytest.fixture(scope="session")
def model():
    """The bytes of target/model.json, made by notebook 01."""
    return trained_model()
