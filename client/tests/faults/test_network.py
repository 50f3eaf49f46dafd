"""The broker and the way to it break, and messages come twice."""

import json
import os
import random
import signal
import time

from clients import STACK, Device
from driver import request, reconnected, rows
from local_cloud import size, wait_for


def test_nothing_is_broken(case):
    with case.asking() as asker:
        pass
    case.saw(f"retried {asker.counters['retried']}")


def test_basic_ingest_and_nothing_is_broken(case):
    with case.asking(basic_ingest=True) as asker:
        pass
    case.saw(f"past the broker to the rule; retried {asker.counters['retried']}")


def back_again(case, end):
    with case.asking(200) as asker:
        end()
        gone = time.monotonic()
        case.world.cloud.must("local")
        back = time.monotonic()
        first = wait_for(lambda: asker.answered(since=back), 20, "an answer after the broker was back")[0]
    case.saw(f"down for {back - gone:.1f} s, first answer {first - back:.1f} s after, {reconnected(asker)}")


def test_broker_restarted_while_requests_are_pending(case):
    back_again(case, lambda: case.world.cloud.must("stop"))


def test_cloud_killed_with_kill_9_and_started_again_with_its_state(case):
    # What is some seconds old is saved.
    time.sleep(max(0, case.world.deployed + 6 - time.monotonic()))
    back_again(case, lambda: os.kill(case.world.pid(), signal.SIGKILL))


def test_connection_cut_every_second(case):
    cuts = size(3, 6)
    with case.asking(200, wire=True) as asker:
        for _ in range(cuts):
            time.sleep(1)
            case.world.wire.cut()
    case.saw(reconnected(asker, cuts // 2))


def test_network_stalls_for_2_s(case):
    with case.asking(wire=True) as asker:
        began = time.monotonic()
        case.world.wire.stall(2)
        silent = asker.answered(began + 0.5, began + 2)
    assert not silent, f"{len(silent)} answers came while nothing went through"
    slowest = max(end["ms"] for ends in asker.ends.values() for end in ends)
    case.saw(f"slowest {slowest:.0f} ms")


def swallowed(case, way):
    with case.asking(200, wire=True) as asker:
        with case.world.wire.swallowing(way):
            time.sleep(4)  # the client takes three seconds of silence for a dead connection
    case.saw(reconnected(asker))


def test_everything_to_the_broker_is_dropped_for_4_s(case):
    swallowed(case, "up")


def test_everything_from_the_broker_is_dropped_for_4_s(case):
    swallowed(case, "down")


def test_second_client_with_the_same_id(case):
    with case.asking(150) as asker:
        for _ in range(3):
            with Device("asker", folder=case.world.devices / "asker") as twin:
                twin.listening()
                time.sleep(0.2)
            time.sleep(2.2)  # the client is back after a second or so, and stays for one
    case.saw(reconnected(asker, 3))


def test_every_request_delivered_twice(case):
    data, count = case.world.cloud.client("iot-data"), size(30, 100)
    with case.asking(100, rate=20) as asker:
        sent = set()
        while len(sent) < count:
            for request_id, row in list(asker.rows.items()):
                if request_id not in sent:
                    sent.add(request_id)
                    payload = request(request_id, row)
                    data.publish(topic=f"{STACK}/request/{STACK}-asker", qos=1, payload=payload)
            time.sleep(0.01)
    dropped = asker.counters["duplicate"]
    assert dropped >= count // 2, f"only {dropped} second answers"
    case.saw(f"{dropped} second answers dropped")


def test_answers_doubled_and_out_of_order(case):
    cloud, count = case.world.cloud, size(30, 100)
    data, answers = cloud.client("iot-data"), []
    with case.asking(100, rate=20) as asker:
        for n, row in zip(range(count), rows()):
            answers += [cloud.invoke(request(f"q-{n}", row).encode())] * 2
        random.Random(1).shuffle(answers)
        for answer in answers:
            data.publish(topic=f"{STACK}/response/{STACK}-asker", qos=1, payload=json.dumps(answer))
    dropped = asker.counters["duplicate"] + asker.counters["stray"]
    assert dropped >= count, f"only {dropped} dropped"
    case.saw(f"{dropped} dropped")
