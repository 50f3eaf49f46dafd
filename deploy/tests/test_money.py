"""What keeps a bill small and a first hour short: budget, alarms' action, the bucket's lifecycle, the doctor."""

import json
import os
import re
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.session
import cfnlint.decode
import pytest
from botocore import xform_name
from clients import ACCOUNT, BUCKET, DEPLOY, REGION, ROOT, STACK, deployed_cloud, run

TEMPLATE, _ = cfnlint.decode.decode(str(ROOT / "deploy/template.yaml"))
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, model):
    with deployed_cloud(tmp_path_factory.mktemp("money"), model, LAMBDA_ACCOUNT_CONCURRENCY="10") as cloud:
        yield cloud


# --- the template -----------------------------------------------------------


def test_a_budget_is_made_only_for_an_address(cloud):
    assert TEMPLATE["Parameters"]["BudgetEmail"]["Default"] == ""
    wanted = TEMPLATE["Conditions"]["HasBudget"]["Fn::And"]
    assert wanted[1] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "BudgetEmail"}, ""]}]}
    budget = TEMPLATE["Resources"]["Budget"]
    assert budget["Condition"] == "HasBudget"
    told = budget["Properties"]["NotificationsWithSubscribers"]
    assert len(told) == 3 and all(
        each["Subscribers"] == [{"SubscriptionType": "EMAIL", "Address": {"Ref": "BudgetEmail"}}] for each in told
    )
    # Of the whole account: a filter by a tag that nobody has activated would count nothing.
    assert not {"CostFilters", "FilterExpression"} & budget["Properties"]["Budget"].keys()
    resources = cloud.client("cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]
    assert "Budget" not in {each["LogicalResourceId"] for each in resources}


def test_every_alarm_has_the_action():
    alarms = [r["Properties"] for r in TEMPLATE["Resources"].values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    topic = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]}
    assert len(alarms) >= 2 and all(alarm["AlarmActions"] == alarm["OKActions"] == topic for alarm in alarms)


def test_the_bucket_forgets_only_what_was_replaced_or_deleted():
    rules = TEMPLATE["Resources"]["Bucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    ends = {"ExpirationInDays", "ExpirationDate", "Transition", "Transitions"}
    assert len(rules) == 3 and not any(ends & rule.keys() for rule in rules)
    models = next(rule for rule in rules if rule.get("Prefix") == "models/")
    # `make rollback WHAT=model` goes through the copies of models/current.json.
    assert models["NoncurrentVersionExpiration"]["NewerNoncurrentVersions"] >= 20


# --- the deployer -----------------------------------------------------------


def test_an_alarms_action_stays_until_it_is_taken_away(cloud):
    def actions():
        alarms = cloud.client("cloudwatch").describe_alarms(AlarmNamePrefix=f"{STACK}-")["MetricAlarms"]
        return {tuple(alarm["AlarmActions"]) for alarm in alarms}

    assert actions() == {()}
    for setting, expected in (({"ALARM_TOPIC": TOPIC}, (TOPIC,)), ({}, (TOPIC,)), ({"ALARM_TOPIC": ""}, ())):
        cloud.must("deploy", **setting)
        assert actions() == {expected}, setting


def test_a_budget_is_a_whole_number_of_dollars(cloud):
    for setting in ({"BUDGET_DOLLARS": "0"}, {"BUDGET_DOLLARS": "ten"}):
        code, _, err = cloud.make("deploy", **setting)
        assert code != 0 and "budget-dollars" in err, err


def test_old_code_is_deleted_and_what_is_deployed_stays(cloud):
    s3 = cloud.client("s3")
    for i in (0, 1, 2, 3, 4, 5, 6, 7, 7, 7):  # one of them has more versions, which do not count
        if i == 3:
            time.sleep(1.1)  # the next five are newer
        s3.put_object(Bucket=BUCKET, Key=f"code/{i}.zip", Body=b"x")
    before = {each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET, Prefix="code/")["Contents"]}
    cloud.must("deploy")
    left = {each["Key"] for each in s3.list_objects_v2(Bucket=BUCKET, Prefix="code/")["Contents"]}
    [deployed] = [key for key in before if len(key) > len("code/0.zip")]
    assert left == {deployed, *(f"code/{i}.zip" for i in range(3, 8))}
    cloud.must("deploy")  # with nothing to do, and the same code there
    assert cloud.invoke(json.dumps({"request_id": "r", "describe": True}))["model"]


# --- the doctor -------------------------------------------------------------


def person(cloud, name, without=()):
    """Who may deploy, but for some actions, and may let IAM simulate that."""
    policy = json.loads(cloud.must("policy"))
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        statement["Action"] = [action for action in actions if action not in without]
    own = ["iam:SimulatePrincipalPolicy", "iam:GetPolicy", "iam:GetRole", "lambda:GetAccountSettings"]
    policy["Statement"] = [each for each in policy["Statement"] if each["Action"]]
    policy["Statement"].append({"Effect": "Allow", "Action": own, "Resource": "*"})
    users = cloud.client("iam")
    users.create_user(UserName=name)
    users.put_user_policy(UserName=name, PolicyName="deploy", PolicyDocument=json.dumps(policy))
    key = users.create_access_key(UserName=name)["AccessKey"]
    return {"key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}


def doctor(cloud, **keys):
    """(exit code, {what: (state, detail)})."""
    asked = cloud.deployer("doctor", **keys)
    said, _ = asked.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith(" ")]
    found = {line[15:28].strip(): (line[:15].strip(), line[28:]) for line in lines}
    return asked.returncode, found, said


def test_the_doctor_finds_all_rights_of_the_printed_policy_and_a_small_quota(cloud):
    code, found, said = doctor(cloud, **person(cloud, "dora"))
    assert found["rights"][0] == "ok", said
    assert found["quota"] == ("NOT OK", "10 calls of functions at once") and "Service Quotas" in said
    assert code == 1
    others = found.keys() - {"quota", "boundary"}
    assert len(others) >= 7 and {found[what][0] for what in others} == {"ok"}, said


def test_the_doctor_names_a_right_that_is_missing(cloud):
    code, found, said = doctor(cloud, **person(cloud, "max", without=("lambda:PublishVersion", "iot:CreateThing")))
    assert code == 1 and found["rights"][0] == "NOT OK"
    assert "lambda:PublishVersion" in said and "iot:CreateThing" in said and "make policy" in said


def test_the_doctor_says_what_it_could_not_ask(cloud):
    keys = person(cloud, "eve")
    cloud.client("iam").delete_user_policy(UserName="eve", PolicyName="deploy")
    code, found, said = doctor(cloud, **keys)
    assert {found[what][0] for what in ("AWS IoT", "stack", "bucket", "rights")} == {"could not ask"}, said
    assert code == 1 and found["quota"][0] == "NOT OK"  # which the local cloud tells anybody


@pytest.fixture
def late():
    """A service whose clock is an hour behind, and that knows who is asking and nothing else."""

    class Late(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(404, b"")

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            result = f"<Account>{ACCOUNT}</Account><Arn>arn:aws:iam::{ACCOUNT}:user/u</Arn><UserId>u</UserId>"
            for name in ("GetCallerIdentityResult", "GetCallerIdentityResponse"):
                result = f"<{name}>{result}</{name}>"
            known = b"GetCallerIdentity" in body
            self.answer(200 if known else 403, result.encode() if known else b"")

        def date_time_string(self, timestamp=None):
            return super().date_time_string(time.time() - 3600)

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Late)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_doctor_sees_a_wrong_clock_and_credentials_that_end(cloud, late):
    ends = {"AWS_SESSION_TOKEN": "t", "AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z"}
    code, out, err = run(DEPLOY, "doctor", environment={**cloud.environment, "AWS_ENDPOINT_URL": late, **ends})
    assert code == 1, err
    assert "NOT OK         clock        3600 s" in out or "NOT OK         clock        3599 s" in out, out
    assert "NOT OK         credentials" in out and "credential_process" in out


def test_the_doctor_of_aws_keeps_to_aws(cloud):
    code, _, err = run(DEPLOY, "doctor", environment={**cloud.environment, "TARGET": "aws"})
    assert code == 1 and "unset it" in err


# --- make -------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "arch"), [((), "arm64"), (("ARCH=x86_64",), "x86_64"), (("ARCH=arm64",), "arm64")])
def test_the_function_is_for_arm64_on_aws_where_nothing_else_is_asked(setting, arch):
    outer = ("ARCH", "MAKEFLAGS", "MAKELEVEL")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    chosen = "--eval=chosen: ; @echo ARCH=$(ARCH)"  # a rule is read early and expanded late
    code, out, err = run("make", "--dry-run", chosen, "build", "chosen", "TARGET=aws", *setting, environment=environment)
    assert code == 0, err
    # `setup.py lambda` reads it: test_situations.py says with which flag.
    assert f"echo ARCH={arch}" in out.splitlines() and "setup.py lambda" in out


def test_arm64_is_the_cheaper_one():
    prices = json.loads((ROOT / "data/prices.json").read_text())["prices"]
    for price in ("lambda_gb_second", "lambda_provisioned_gb_second", "lambda_provisioned_duration_gb_second"):
        assert prices[f"{price}_arm64"]["usd"] < prices[f"{price}_x86_64"]["usd"]


# --- the first hour ---------------------------------------------------------


def test_the_commands_of_the_first_hour_are_ones_that_aws_has():
    """By botocore's models: service, operation, and each option but the CLI's own."""
    text = (ROOT / "deploy/AWS.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if re.match("aws [a-z0-9]+ [a-z]", line)]
    assert len(commands) >= 25
    session = botocore.session.get_session()
    own = {"query", "output", "profile"}
    for _, service, operation, *options in commands:
        if (service, operation) in {("configure", "export-credentials"), ("logs", "tail")}:
            continue  # the CLI's, not the service's
        model = session.get_service_model({"s3api": "s3"}.get(service, service))
        names = {xform_name(name, "-"): name for name in model.operation_names}
        shape = model.operation_model(names[operation]).input_shape
        known = {xform_name(name, "-") for name in shape.members}
        given = {each[2:].removeprefix("no-") for each in options if each.startswith("--")}
        assert given - own <= known, (service, operation, given - own - known)


def test_the_first_hour_names_targets_that_make_has():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", (ROOT / "deploy/AWS.md").read_text()))
    assert len(named) >= 15 and named <= targets, named - targets
