"""Break the network, the broker, the function and the store, and see how each request ends.

Every case runs the real client, broker, certificates and function, and breaks one thing while requests are pending.
A request must end exactly once: answered as scikit-learn's weights say, refused with a code, or failed with a typed
error before its deadline. One that ends in silence is lost. A case must also show that its fault happened, or it
proves nothing.

    make faults              all cases in full size, the steady load for one minute
    make faults SOAK=1       the steady load for thirty minutes
    make faults CASE=broker  only the cases whose name contains this

Each file starts a local cloud of its own on free ports and leaves nothing behind, so the files can run side by side.
The function is the real program under a shell script that a case can tell to fail, and talks to the cloud by way of a
gateway that a case can close.
"""

import os
from pathlib import Path

import pytest
from driver import Case, World
from local_cloud import local_cloud


@pytest.fixture(scope="module")
def world(model):
    with local_cloud(model) as cloud, World(cloud, model) as world:
        yield world


@pytest.fixture
def case(world, request):
    case = Case(world, name_of(request.node))
    request.node.user_properties.append(("fault", case.row))
    return case


def name_of(item):
    return item.name.removeprefix("test_").replace("_", " ")


def pytest_collection_modifyitems(config, items):
    wanted = os.environ.get("CASE", "").lower()
    others = [item for item in items if item.path.parent == Path(__file__).parent and wanted not in name_of(item).lower()]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)
