"""What goes wrong in front of an audience: each has its sentence with the next step, or just works.

With umask 077, as some companies set it.
"""

import json
import os
import signal

import pytest
from botocore.exceptions import ClientError
from clients import BUCKET, DEPLOY, FRUIT, STACK, Cloud, run, sha256
from test_local import local, wait_for


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, model):
    """A cloud with the stack's first stage and a model."""
    before, folder = os.umask(0o077), tmp_path_factory.mktemp("stage")
    cloud = Cloud(folder / "local", folder / "devices")
    cloud.must("local")
    try:
        cloud.must("bucket")
        cloud.must("publish")
        yield cloud
    finally:
        cloud.must("stop")
        os.umask(before)


def test_a_model_that_was_deleted_comes_back_by_a_rollback(cloud, model, tmp_path):
    (tmp_path / "fruit.json").write_bytes(FRUIT)
    cloud.must("publish", MODEL=tmp_path / "fruit.json")
    cloud.must("publish")
    cloud.client("s3").delete_object(Bucket=BUCKET, Key="models/current.json")
    said = cloud.must("rollback", WHAT="model")
    assert f"no model is current (models/current.json was deleted): {sha256(model)[:12]} was the last" in said
    assert cloud.current() == model


def test_a_schedule_that_is_none_is_refused_with_an_example(cloud):
    for target in ("plan", "deploy"):
        code, _, err = cloud.make(target, KEEP_WARM="every day")
        assert code == 2 and "KEEP_WARM='rate(5 minutes)'" in err and "Pattern" not in err


def test_two_stacks_may_have_a_device_of_the_same_name(cloud):
    """As when notebook 4 runs with another STACK; by the folders that `make device` itself chooses."""
    folders = []
    for stack in (STACK, "other"):
        cloud.must("bucket", STACK=stack)
        said, _ = cloud.deployer("device", "notebook", stack=stack).communicate(timeout=60)
        assert "notebook 3" in said and "belongs" not in said  # not deployed here: that far it comes
        folders.append(cloud.must("device-dir", STACK=stack, NAME="notebook"))
    assert folders[0] != folders[1]
    for stack in (STACK, "other"):
        destroy = cloud.deployer("destroy", stack=stack)
        assert destroy.wait(60) == 0, destroy.stdout.read()
    cloud.must("bucket")
    cloud.must("publish")


ELSEWHERE = {
    "AWS_ENDPOINT_URL_S3": "https://example.com",
    "AWS_ENDPOINT_URL_LAMBDA": "http://127.0.0.1:1",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_setting_that_leads_elsewhere_is_named(cloud, name):
    code, _, err = cloud.make("status", **{name: ELSEWHERE[name]})
    assert code == 1 and "TARGET=local, but" in err and "would go to" in err


def test_so_is_one_of_the_aws_profile(cloud, tmp_path):
    """On AWS a company may have endpoints of its own: said, not refused."""
    here = "services = here\n[services here]\ns3 =\n  endpoint_url = https://example.com\n"
    url = cloud.environment["AWS_ENDPOINT_URL"]
    (tmp_path / "config").write_text(f"[default]\nregion = eu-west-1\nendpoint_url = {url}\n{here}")
    aws = {"TARGET": "aws", "AWS_CONFIG_FILE": str(tmp_path / "config")}
    environment = {name: value for name, value in cloud.environment.items() if name != "AWS_ENDPOINT_URL"}
    code, out, err = run(DEPLOY, "device-dir", "lily", environment=environment | aws)
    assert code == 0 and out.startswith("target/devices/aws/"), err
    assert "note: your AWS settings send calls to https://example.com: S3\n" in err
    assert f"note: your AWS settings send calls to {url}: Budgets, Cloud" in err


def test_a_bucket_that_is_in_the_way_has_a_sentence(cloud):
    cloud.must("destroy")
    cloud.client("s3").create_bucket(Bucket=BUCKET)
    code, _, err = cloud.make("bucket")
    assert code == 1 and "already exists" in err and "DescribeEvents" not in err
    assert f"if an earlier stack {STACK} left it behind, `make destroy` removes it" in err
    cloud.client("s3").delete_bucket(Bucket=BUCKET)


def test_nothing_of_a_destroyed_stack_comes_back_after_a_kill(cloud):
    cloud.must("bucket")
    cloud.must("publish")
    cloud.must("destroy")
    saved = cloud.dir / "state/together.json"
    wait_for(lambda: saved.exists() and not json.loads(saved.read_text())["s3"]["payload"]["buckets_meta"]["data"])
    settings = local.Settings(cloud.settings)
    os.kill(local.running(settings)["pid"], signal.SIGKILL)
    wait_for(lambda: not local.running(settings))
    cloud.must("local")
    with pytest.raises(ClientError, match="404"):
        cloud.client("s3").head_bucket(Bucket=BUCKET)
    cloud.must("bucket")
