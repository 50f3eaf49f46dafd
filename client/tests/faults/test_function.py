"""The function, its model and its cloud break."""

import json
import signal
import time

import pytest
from botocore.exceptions import ClientError
from clients import BUCKET, FUNCTION
from driver import asked_again
from local_cloud import size, wait_for

IOT, S3 = "/topics/", f"/{BUCKET}/"


def test_function_crashes_in_init(case):
    with case.asking() as asker:
        flag = case.world.folder / "no-start"
        flag.touch()
        case.world.signal(signal.SIGKILL)
        time.sleep(size(2, 3))
        crashes = len(flag.read_text().splitlines())
        flag.unlink()
    assert crashes, "no container was started"
    case.saw(f"{crashes} crashes, {asked_again(asker)}")


def test_function_crashes_while_it_answers(case):
    killed, least = 0, size(3, 5)
    with case.asking(200, rate=40) as asker:
        for _ in range(size(10, 20)):
            killed += case.world.signal(signal.SIGKILL)
            time.sleep(0.15)
    assert killed >= least, f"only {killed} containers killed"
    case.saw(f"{killed} containers killed, {asked_again(asker)}")


def test_function_times_out(case):
    log = case.world.cloud.dir / "ministack.log"
    timed_out = lambda: log.read_text().count("Task timed out")  # noqa: E731
    before = timed_out()
    with case.asking(360) as asker:
        assert case.world.signal(signal.SIGSTOP), "there was no container to stop"
        wait_for(lambda: timed_out() > before, 20, "a call that timed out")  # the template's Timeout is 10 s
    case.saw(asked_again(asker))


def test_function_throttled_for_4_s(case):
    function = case.world.cloud.client("lambda")
    with case.asking() as asker:
        function.put_function_concurrency(FunctionName=FUNCTION, ReservedConcurrentExecutions=0)
        with pytest.raises(ClientError, match="TooManyRequests"):
            function.invoke(FunctionName=FUNCTION, Qualifier="live", Payload=b"{}")
        time.sleep(2)  # what ran already has answered
        silent = time.monotonic()
        time.sleep(2)
        freed = time.monotonic()
        function.delete_function_concurrency(FunctionName=FUNCTION)
    assert not asker.answered(silent, freed), "the function answered although it was throttled"
    case.saw(asked_again(asker))


def without(case, path, seconds, full=120, silence=0, cold=False):
    """Questions while the function's calls of a path fail; and which were answered meanwhile."""
    gateway = case.world.gateway
    with case.asking(full) as asker, gateway.closed(path, silence):
        if cold:
            case.world.signal(signal.SIGKILL)
        wait_for(asker.refusals if cold else lambda: gateway.refused[path], what=f"what comes of a call of {path}")
        began = time.monotonic()
        time.sleep(seconds)
        meanwhile = asker.answered(since=began)
    case.saw(f"{gateway.refused[path]} calls of the function failed, {len(meanwhile)} answers meanwhile")
    return asker, meanwhile


def test_S3_away_at_a_cold_start(case):
    asker, _ = without(case, S3, size(0.5, 3), cold=True)
    assert set(asker.refusals()) == {"model_unavailable"}, asker.refusals()


def test_S3_away_at_a_refresh(case):
    _, meanwhile = without(case, S3, size(1.5, 7), full=300)
    assert meanwhile, "the last good model answered nothing"


def test_S3_says_nothing_at_a_refresh(case):
    _, meanwhile = without(case, S3, size(3, 7), full=300, silence=5)
    assert meanwhile, "the last good model answered nothing"


def test_iot_data_away_for_3_s(case):
    _, meanwhile = without(case, IOT, 3)
    assert len(meanwhile) <= 16, "answers came although they could not be published"


def current(case, content):
    """Publish something else as the model in use, until a container has looked at it."""
    cloud, began = case.world.cloud, int(time.time() * 1000)
    looked_at = dict(
        logGroupName=f"/aws/lambda/{FUNCTION}", startTime=began, filterPattern='"the last good model stays in use"'
    )
    with case.asking(300) as asker:
        try:
            cloud.client("s3").put_object(Bucket=BUCKET, Key="models/current.json", Body=content)
            logs = cloud.client("logs")
            wait_for(lambda: logs.filter_log_events(**looked_at)["events"], what="a container that looked at it")
            since = time.monotonic()
            time.sleep(size(0.5, 3))
            meanwhile = asker.answered(since)
        finally:
            cloud.publish(case.world.good)
    assert meanwhile, "the last good model answered nothing"
    case.saw(f"refused by its containers, {len(meanwhile)} answers by the last good model")


def test_damaged_model_published(case):
    current(case, case.world.good[: len(case.world.good) // 2])


def test_model_of_another_schema_published(case):
    current(case, json.dumps({**json.loads(case.world.good), "schema": 1}).encode())
