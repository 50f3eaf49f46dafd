"""`make publish`: any model file into the bucket, and one deployed function that takes up each of them.

What makes a file wrong is tested with its loader (iris_fn/tests/model.rs); here some ways to be wrong must get to the
reader in the loader's words, and leave the bucket as it was.
"""

import json
import random
import time
import zipfile

import pytest
from clients import BUCKET, FRUIT, STACK, ZIP, Cloud, probabilities, run, sha256, zipped
from test_local import wait_for


def written(target, features, classes, weights, intercepts, rows):
    """A model file as another program may write it: {name: (min, max, low, high)} are the features."""
    features = [{"name": name, "unit": "", "min": b[0], "max": b[1], "accept": b[2:]} for name, b in features.items()]
    training = {"data_sha256": "", "rows": 9, "alpha": 1, "iterations": 1, "gradient_norm": 0, "log_loss": 0.1}
    golden = [{"features": row, "probabilities": probabilities(weights, intercepts, row)} for row in rows]
    model = {
        "schema": 2, "kind": "multinomial_logistic_regression", "target": target, "features": features,
        "classes": classes, "weights": weights, "intercepts": intercepts,
        "training": {**training, "cv_accuracy": 0.9}, "golden": golden,
    }  # fmt: skip
    return json.dumps(model).encode()


WEATHER = written(
    "weather", {"pressure": (960, 1050, 800, 1200), "humidity": (5, 100, 0, 100)}, ["dry", "wet"],
    [[0, 0], [-0.06, 0.1]], [0, 55], [[1030, 20], [990, 95]],
)  # fmt: skip


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A cloud with a bucket in it, and no function yet."""
    folder = tmp_path_factory.mktemp("publish")
    cloud = Cloud(folder / "local", folder / "devices")
    cloud.must("local")
    try:
        cloud.must("bucket")
        yield cloud
    finally:
        code, *said = cloud.make("destroy")
        cloud.must("stop")
    assert code == 0, said


@pytest.fixture
def publish(cloud, tmp_path):
    """Publish these bytes: (exit code, stdout, stderr)."""

    def publish(model, name="model.json", **changes):
        (tmp_path / name).write_bytes(model)
        return cloud.make("publish", MODEL=tmp_path / name, **changes)

    return publish


def objects(cloud):
    """{name: how many versions} of all that was ever put into the bucket."""
    listed = cloud.client("s3").list_object_versions(Bucket=BUCKET).get("Versions", [])
    names = [each["Key"] for each in listed]
    return {name: names.count(name) for name in names}


def described(cloud):
    return cloud.invoke(b'{"request_id": "d", "describe": true}')


# --- the bucket, and no function yet ----------------------------------------


def test_without_a_bucket_it_says_how_to_make_one(cloud, publish):
    code, _, err = publish(FRUIT, STACK="nobucket")
    assert code != 0 and err == "error: stack nobucket has no bucket: run `make bucket` first\n"
    assert [bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]] == [BUCKET]


def test_make_asks_which_model(cloud):
    code, out, _ = run("make", "--no-print-directory", "-o", "setup", "-o", "cloud", "publish", MODEL="")
    assert code == 2 and out == "Which model? make publish MODEL=target/model.json\n"


def test_a_model_is_published_under_its_name_and_made_current(cloud, publish):
    code, out, err = publish(FRUIT, "what's it $(called) .json")
    assert code == 0, err
    name = sha256(FRUIT)
    said = f"model {name[:12]} says which fruit it is (apple, pear, plum), by weight, width, height, sweetness\n"
    assert out.startswith(said) and "uploaded to s3://" in out
    assert out.endswith("`make versions` lists the models, `make rollback WHAT=model` goes back to the one before\n")
    assert objects(cloud) == {f"models/{name}.json": 1, "models/current.json": 1}
    stored = cloud.client("s3").get_object(Bucket=BUCKET, Key=f"models/{name}.json")["Body"].read()
    assert stored == cloud.current() == FRUIT


def test_publishing_it_again_changes_nothing(cloud, publish):
    before = objects(cloud)
    code, out, _ = publish(FRUIT)
    assert code == 0 and "it is current already" in out and objects(cloud) == before


def test_a_publish_that_was_broken_off_is_completed(cloud, publish):
    storage, name = cloud.client("s3"), f"models/{sha256(FRUIT)}.json"
    for missing in ("models/current.json", name):
        before = objects(cloud)
        storage.delete_object(Bucket=BUCKET, Key=missing)
        code, out, err = publish(FRUIT)
        assert code == 0 and "is current: `live` loads it" in out, err
        assert cloud.current() == storage.get_object(Bucket=BUCKET, Key=name)["Body"].read() == FRUIT
        assert objects(cloud)[missing] == before[missing] + 1


def test_an_object_that_is_not_what_its_name_says_is_not_made_current(cloud, publish):
    name = f"models/{sha256(WEATHER)}.json"
    cloud.client("s3").put_object(Bucket=BUCKET, Key=name, Body=FRUIT)
    code, _, err = publish(WEATHER)
    assert code != 0 and f"{name} has another SHA-256 than its name" in err
    assert cloud.current() == FRUIT
    cloud.client("s3").delete_object(Bucket=BUCKET, Key=name)


# --- a function that answers ------------------------------------------------

SELDOM = 12  # seconds: more than a publish and the first half of a deploy take, and less than a deploy waits for a model


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Zips that answer alike and are not the same."""
    folder, program = tmp_path_factory.mktemp("builds"), zipfile.ZipFile(ZIP).read("bootstrap")
    return [zipped(folder / f"{n}.zip", bootstrap=program, note=str(n)) for n in range(2)]


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """Zips of a function that looks for a new model so seldom that a deploy finds `live` with the one before."""
    folder, program = tmp_path_factory.mktemp("patient"), zipfile.ZipFile(ZIP).read("bootstrap")
    script = f'#!/bin/sh\nexport MODEL_TTL={SELDOM}\nexec "$(dirname "$0")/function"\n'
    return (zipped(folder / f"{n}.zip", bootstrap=script, function=program, note=str(n)) for n in range(4))


@pytest.fixture(scope="module")
def deployed(cloud, builds):
    """The same, with the function; it answers by the first model."""
    cloud.publish(FRUIT)
    cloud.must("deploy", ZIP=builds[0])
    return cloud


def changed(**changes):
    return json.dumps({**json.loads(FRUIT), **changes}).encode()


WRONG = {
    "half of it": (FRUIT[: len(FRUIT) // 2], "not a model file: "),
    "nothing": (b"", "not a model file: "),
    "a table": (b"weight,width\n1,2\n", "not a model file: "),
    "too large": (FRUIT + b" " * (1 << 20), "is too large: at most 1048576 are read"),
    "an older schema": (changed(schema=1), "model schema 1 is not supported"),
    "a class that has no weights": (changed(classes=["apple", "pear", "plum", "fig"]), "expected 4"),
    "other weights": (FRUIT.replace(b"0.015", b"0.016"), "golden row 0: P("),
    "a number that overflows": (FRUIT.replace(b"-3.5", b"-3.5e308"), "not a model file: number out of range"),
}


@pytest.mark.parametrize("model, reason", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_refused_in_the_loaders_words_and_the_last_good_model_serves(deployed, publish, model, reason):
    before = objects(deployed)
    code, out, err = publish(model, "wrong.json")
    assert code != 0 and out == ""
    assert "/wrong.json is refused: " in err and reason in err and err.count("\n") == 1
    assert objects(deployed) == before
    assert described(deployed)["model"] == sha256(FRUIT)


def test_a_file_that_is_not_there_is_named(deployed, tmp_path):
    code, _, err = deployed.make("publish", MODEL=tmp_path / "none.json")
    assert code != 0 and f"cannot read {tmp_path}/none.json: No such file" in err


def test_without_a_request_a_row_of_the_models_own_is_asked(deployed):
    code, out, err = deployed.make("invoke")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["fruit"] in ("apple", "pear", "plum") and answer["in_distribution"] is True
    asked = {"height": 8.0, "request_id": "hello", "sweetness": 0.5, "weight": 170.0, "width": 6.75}
    assert json.loads(err.removeprefix("asked ")) == asked


def test_another_model_is_served_by_the_same_version_and_the_first_one_again(deployed, publish):
    live = deployed.alias()
    code, out, err = publish(WEATHER)
    assert code == 0, err
    assert f"the current model, {sha256(FRUIT)[:12]}, asks for weight, width, height, sweetness: " in out
    wait_for(lambda: described(deployed)["model"] == sha256(WEATHER), 20)
    answer = json.loads(deployed.must("invoke"))
    assert answer["weather"] in ("dry", "wet") and answer["model"] == sha256(WEATHER)
    for row in json.loads(WEATHER)["golden"]:
        request = {"request_id": "r", **dict(zip(("pressure", "humidity"), row["features"]))}
        found = deployed.invoke(json.dumps(request))["probabilities"]
        assert list(found.values()) == pytest.approx(row["probabilities"], rel=0, abs=1e-9)
    assert "weather from 2 features" in deployed.must("status")

    assert f"model {sha256(FRUIT)[:12]} is current" in deployed.must("rollback", WHAT="model")
    wait_for(lambda: described(deployed)["model"] == sha256(FRUIT), 20)
    assert json.loads(deployed.must("invoke"))["fruit"]
    assert deployed.alias() == live


def test_invoke_asks_anew_when_another_model_comes_in_between(deployed, publish):
    """The call that describes a model is also the one beside which the next model is found, when it is time to look."""
    wait_for(lambda: described(deployed)["model"] == sha256(FRUIT), 20)
    time.sleep(6)  # longer than MODEL_TTL
    assert publish(WEATHER)[0] == 0
    assert json.loads(deployed.must("invoke"))["weather"]


def test_code_is_compared_on_one_model_also_when_live_still_has_another(deployed, publish, patient):
    """Published just before the deploy, so that `live` still answers by the model before, until it looks again."""
    rows = changed(training={**json.loads(FRUIT)["training"], "rows": 9})
    harvest = changed(target="harvest")
    publish(FRUIT)
    deployed.must("deploy", ZIP=next(patient))
    before = FRUIT
    for model, said in (
        (rows, f"the model changed from {sha256(before)[:12]} to "),
        (harvest, f"`live` has a model of other features or classes (it serves model {sha256(rows)[:12]})"),
        (WEATHER, "`live` has a model of other features or classes (it refuses the rows: "),
    ):
        time.sleep(SELDOM)  # it looks at the next call, and then not for as long
        assert described(deployed)["model"] == sha256(before)
        assert publish(model)[0] == 0
        out = deployed.must("deploy", ZIP=next(patient))
        assert said in out
        assert "compared with `live`: 0 of 600 rows get another label, probabilities differ by up to 0.0e0" in out
        assert described(deployed)["model"] == sha256(model)
        before = model


def test_a_model_of_the_largest_size_is_published_deployed_and_compared(deployed, publish, builds):
    dice = random.Random(256)
    names = [f"{n:03}-" + "x" * 60 for n in range(256)]
    weights = [[round(dice.uniform(-1, 1), 3) for _ in names] for _ in names]
    features = {f"f{name[:63]}": (-1, 1, -9, 9) for name in names}
    rows = [[round(dice.uniform(-1, 1), 3) for _ in names] for _ in range(3)]
    largest = written("t", features, names, weights, [0] * 256, rows)
    code, out, err = publish(largest)
    assert code == 0 and "and 248 more" in out, err
    began = time.monotonic()
    out = deployed.must("deploy", ZIP=builds[1])
    assert "answers all 3 golden rows" in out and "compared with `live`: 0 of " in out
    assert time.monotonic() - began < 120
    assert json.loads(deployed.must("invoke"))["t"] in names
    assert f"stack     {STACK}: no changes" in deployed.must("deploy", ZIP=builds[1])
