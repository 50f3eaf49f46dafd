"""The function, its model and its cloud break."""

import json
import signal
import time

import pytest
from botocore.exceptions import ClientError
from clients import BUCKET, FUNCTION, STACK
from driver import retried, rows
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
    case.saw(f"{crashes} crashes, {retried(asker)}")


def test_function_crashes_while_it_answers(case):
    killed, least = 0, size(3, 5)
    with case.asking(200, rate=40) as asker:
        for _ in range(size(10, 20)):
            killed += case.world.signal(signal.SIGKILL)
            time.sleep(0.15)
    assert killed >= least, f"only {killed} containers killed"
    case.saw(f"{killed} containers killed, {retried(asker)}")


def test_function_times_out(case):
    log = case.world.cloud.dir / "ministack.log"
    timed_out = lambda: log.read_text().count("Task timed out")  # noqa: E731
    before = timed_out()
    with case.asking(360) as asker:
        assert case.world.signal(signal.SIGSTOP), "there was no container to stop"
        wait_for(lambda: timed_out() > before, 20, "a call that timed out")  # the template's Timeout is 10 s
    case.saw(retried(asker))


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
    case.saw(retried(asker))


def without(case, path, seconds, full=120, silence=0, cold=False):
    """Requests while the function's calls of a path fail; and which were answered meanwhile."""
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


def test_S3_unreachable_at_a_cold_start(case):
    asker, _ = without(case, S3, size(0.5, 3), cold=True)
    assert set(asker.refusals()) == {"model_unavailable"}, asker.refusals()


def test_S3_unreachable_at_a_refresh(case):
    _, meanwhile = without(case, S3, size(1.5, 7), full=300)
    assert meanwhile, "the last good model answered nothing"


def test_S3_silent_at_a_refresh(case):
    _, meanwhile = without(case, S3, size(3, 7), full=300, silence=5)
    assert meanwhile, "the last good model answered nothing"


def test_iot_data_unreachable_for_3_s(case):
    _, meanwhile = without(case, IOT, 3)
    assert len(meanwhile) <= 16, "answers came although they could not be published"


def test_S3_sends_the_body_slowly_at_a_cold_start(case):
    gateway, log = case.world.gateway, case.world.cloud.dir / "ministack.log"
    timed_out = log.read_text().count("Task timed out")
    with case.asking() as asker, gateway.crawling(S3):
        case.world.signal(signal.SIGKILL)
        wait_for(asker.refusals, 30, "a refusal for want of a model")
    assert set(asker.refusals()) == {"model_unavailable"}, asker.refusals()
    assert log.read_text().count("Task timed out") == timed_out, "a call waited for the model until Lambda ended it"
    case.saw(f"{gateway.crawled} bodies crawled, {asker.refusals().total()} refused meanwhile")


def test_S3_sends_the_body_slowly_at_a_refresh(case):
    gateway, cloud = case.world.gateway, case.world.cloud
    newer = case.world.good.replace(b'"iterations": ', b'"iterations": 1')  # another file, the same weights
    with case.asking(300) as asker, gateway.crawling(S3):
        cloud.publish(newer)
        wait_for(lambda: gateway.crawled, what="a container that reads the newer model")
        began = time.monotonic()
        time.sleep(size(2, 7))
        meanwhile = asker.answered(since=began)
    cloud.publish(case.world.good)
    assert meanwhile, "the last good model answered nothing"
    case.saw(f"{gateway.crawled} bodies crawled, {len(meanwhile)} answers meanwhile")


def test_connections_gone_stale_while_the_container_was_frozen(case):
    """Lambda freezes a container between two calls, and its connections may die meanwhile without a word. After a short
    freeze the first attempt is lost and the second is answered; after a long one the old connection is not used."""
    gateway, world, long = case.world.gateway, case.world, 16
    world.signal(signal.SIGKILL)  # a new container: the connections that other cases left would be tried one after the other
    began, logs = int(time.time() * 1000), world.cloud.client("logs")
    with case.client(deadline=30) as asker:
        for n, (row, freeze) in enumerate(zip(rows(), [1] + size(0, 1) * [long])):
            asker.ask(f"before-{n}", row)
            wait_for(lambda: len(asker.answered()) == 2 * n + 1, 20, "an answer")
            time.sleep(0.5)  # the call is over
            assert world.signal(signal.SIGSTOP), "there was no container to freeze"
            gateway.forget()
            time.sleep(freeze)
            world.signal(signal.SIGCONT)
            asker.ask(f"after-{n}", row)
            wait_for(lambda: len(asker.answered()) == 2 * n + 2, 20, "an answer after the thaw")
            heard = "used" if gateway.unheard else "not used"
            assert heard == ("used" if freeze < 15 else "not used"), f"{heard} after {freeze} s"  # `IDLE` of the function
    failed = dict(logGroupName=f"/aws/lambda/{FUNCTION}", startTime=began, filterPattern='"could not publish"')
    failed = logs.filter_log_events(**failed)["events"]
    assert not failed, "a call did not try again in its own time"
    slowest = max(end["ms"] for name, [end] in asker.ends.items() if name.startswith("after"))
    case.saw(f"slowest {slowest:.0f} ms, of which an attempt has 1,500")


def current(case, content):
    """Publish something else as the model in use, until containers have looked at it more than once."""
    cloud, began, gateway = case.world.cloud, int(time.time() * 1000), case.world.gateway
    refused = dict(logGroupName=f"/aws/lambda/{FUNCTION}", startTime=began, filterPattern='"models_refused"')
    path = f"{S3}models/current.json"
    case.world.signal(signal.SIGKILL)  # only containers that are in use are left to look at it
    with case.asking(300) as asker:
        before = gateway.answers.copy()
        try:
            cloud.client("s3").put_object(Bucket=BUCKET, Key="models/current.json", Body=content)
            logs = cloud.client("logs")
            wait_for(lambda: logs.filter_log_events(**refused)["events"], what="a container that looked at it")
            since = time.monotonic()
            time.sleep(size(4, 16))
            meanwhile, looks, containers = asker.answered(since), gateway.answers - before, len(case.world.functions())
            lines = [json.loads(event["message"]) for event in logs.filter_log_events(**refused)["events"]]
        finally:
            cloud.publish(case.world.good)
    assert meanwhile, "the last good model answered nothing"
    read, again = looks[path, 200], looks[path, 304]
    # The good model once, this one once: what was refused is not downloaded at each look.
    assert read <= 2 * containers and again, f"{containers} containers read it {read} times, and looked again {again} times"
    for line in lines:
        [metrics] = line["_aws"]["CloudWatchMetrics"]
        assert ["stack"] in metrics["Dimensions"] and line["stack"] == STACK and line["models_refused"] == 1
        assert {"Name": "models_refused", "Unit": "Count"} in metrics["Metrics"]
        assert line["request_id"] and "is refused" in line["model_error"], line
    case.saw(f"{len(lines)} calls counted it, read {read} times, {len(meanwhile)} answers by the last good model")


def test_damaged_model_published(case):
    current(case, case.world.good[: len(case.world.good) // 2])


def test_model_of_another_schema_published(case):
    current(case, json.dumps({**json.loads(case.world.good), "schema": 1}).encode())
