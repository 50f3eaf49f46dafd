"""Who may do what: the function, a device, a person who deploys, and each member of a class.

Every forbidden thing is tried, with the credentials of the one to whom it is forbidden, and must be refused by the
local cloud, which enforces IAM and IoT policies. What it does not check is checked in the template
(test_template.py).
"""

import base64
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from clients import (
    ACCOUNT, BUCKET, DEPLOY, FUNCTION, LABEL, REGION, ROOT, ROW, STACK, TARGET, ZIP, Cloud, Device, deployed_cloud, iris,
    request, run, sha256, size, zipped,
)  # fmt: skip
from recorder import Recorder
from rights import needed_and_missing, problems
from test_policy import ESCALATIONS, NEEDED, POLICY, as_list, used_by_handlers

REFUSED = {"AccessDenied", "AccessDeniedException", "ForbiddenException", "UnauthorizedOperation"}
MEMBERS = size(4, 30)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, model):
    with deployed_cloud(tmp_path_factory.mktemp("rights"), model) as cloud:
        yield cloud
        code, *said = cloud.make("destroy")
    assert code == 0, said


class Person:
    """AWS clients with somebody's own keys."""

    def __init__(self, cloud, key, secret, token=None):
        self.cloud, self.keys = cloud, (key, secret, token)

    def client(self, service):
        return self.cloud.client(service, *self.keys)

    def deploy(self, *arguments, stack=STACK):
        """(exit code, what it said) of the deployer with these keys."""
        key, secret, _ = self.keys
        done = self.cloud.deployer(*arguments, key=key, secret=secret, stack=stack)
        said, _ = done.communicate(timeout=120)
        return done.returncode, said

    def must_not(self, service, call, arguments):
        with pytest.raises(ClientError) as refusal:
            getattr(self.client(service), call)(**arguments)
        assert refusal.value.response["Error"]["Code"] in REFUSED


# --- the function -----------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(cloud):
    """A model in the bucket of another stack."""
    model = {"Bucket": f"other-{ACCOUNT}-{REGION}", "Key": "models/current.json"}
    cloud.client("s3").create_bucket(Bucket=model["Bucket"])
    cloud.client("s3").put_object(**model, Body=b"x")
    return model


@pytest.fixture(scope="module")
def function(cloud):
    """The rights that the function has, in our hands."""
    role = f"arn:aws:iam::{ACCOUNT}:role/{FUNCTION}-{REGION}"
    made = cloud.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    return Person(cloud, made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])


def test_the_function_may_do_what_it_is_for(cloud, function):
    assert function.client("s3").get_object(Bucket=BUCKET, Key="models/current.json")["Body"].read()
    function.client("iot-data").publish(topic=f"{STACK}/response/nobody", payload=b"{}")


FORBIDDEN_TO_THE_FUNCTION = {
    "write the model": ("s3", "put_object", {"Bucket": BUCKET, "Key": "models/current.json", "Body": b"x"}),
    "delete a model": ("s3", "delete_object", {"Bucket": BUCKET, "Key": "models/current.json"}),
    "list the bucket": ("s3", "list_objects_v2", {"Bucket": BUCKET}),
    "read the code": ("s3", "get_object", {"Bucket": BUCKET, "Key": "code/x.zip"}),
    "ask itself by MQTT": ("iot-data", "publish", {"topic": f"{STACK}/request/x", "payload": b"{}"}),
    "answer for another stack": ("iot-data", "publish", {"topic": f"{STACK}2/response/x", "payload": b"{}"}),
    "call a function": ("lambda", "invoke", {"FunctionName": FUNCTION, "Payload": b"{}"}),
    "change its code": ("lambda", "update_function_code", {"FunctionName": FUNCTION, "ZipFile": b"x"}),
    "read its log": ("logs", "filter_log_events", {"logGroupName": f"/aws/lambda/{FUNCTION}"}),
    "delete a log": ("logs", "delete_log_group", {"logGroupName": f"/aws/lambda/{FUNCTION}"}),
    "make a certificate": ("iot", "create_keys_and_certificate", {}),
    "make a user": ("iam", "create_user", {"UserName": "x"}),
    "look at stacks": ("cloudformation", "describe_stacks", {"StackName": STACK}),
}


@pytest.mark.parametrize("what", FORBIDDEN_TO_THE_FUNCTION)
def test_the_function_may_not(function, what):
    function.must_not(*FORBIDDEN_TO_THE_FUNCTION[what])


def test_the_boundary_holds_whatever_the_roles_own_policy_says(cloud, function, theirs):
    """A person may write that policy."""
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam, role = cloud.client("iam"), f"{FUNCTION}-{REGION}"
    iam.put_role_policy(RoleName=role, PolicyName="everything", PolicyDocument=json.dumps(everything))
    try:
        for call in FORBIDDEN_TO_THE_FUNCTION.values():
            function.must_not(*call)
        read = {"Bucket": BUCKET, "Key": "models/current.json"}
        assert function.client("s3").get_object(**read)
        iam.tag_role(RoleName=role, Tags=[{"Key": "stack", "Value": "other"}])  # hers to write, too
        function.must_not("s3", "get_object", theirs)
        function.must_not("iot-data", "publish", {"topic": "other/response/x", "payload": b"{}"})
        function.must_not("s3", "get_object", read)
    finally:
        iam.delete_role_policy(RoleName=role, PolicyName="everything")
        iam.tag_role(RoleName=role, Tags=[{"Key": "stack", "Value": STACK}])


def test_the_function_may_not_read_the_dead_letters(cloud, function):
    url = cloud.client("sqs").get_queue_url(QueueName=f"{STACK}-dead-letters")["QueueUrl"]
    with pytest.raises(ClientError, match="AccessDenied"):
        function.client("sqs").receive_message(QueueUrl=url)


# --- a person who deploys ---------------------------------------------------


@pytest.fixture(scope="module")
def anna(cloud):
    """A person with what `make policy` prints, and no more."""
    policy = json.loads(cloud.must("policy"))
    # Where the local cloud checks another action or resource than AWS does (Service Authorization Reference:
    # GetAlias is an action of its own there, and a certificate is the resource of these two).
    policy["Statement"] += [
        {"Effect": "Allow", "Action": "lambda:ListAliases", "Resource": f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{FUNCTION}*"},
        {"Effect": "Allow", "Action": ["iot:AttachPolicy", "iot:DetachPolicy"], "Resource": "*"},
    ]  # fmt: skip
    users = cloud.client("iam")
    users.create_user(UserName="anna")
    users.put_user_policy(UserName="anna", PolicyName="deploy", PolicyDocument=json.dumps(policy))
    key = users.create_access_key(UserName="anna")["AccessKey"]
    return Person(cloud, key["AccessKeyId"], key["SecretAccessKey"])


def test_the_printed_policy_is_enough_for_all_of_the_walkthrough(cloud, anna, model, tmp_path):
    zip, folder = str(ZIP), ["--dir", str(cloud.devices)]
    first, second = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    Path(first).write_bytes(model)
    Path(second).write_bytes(model.replace(b'"iterations": ', b'"iterations": 1'))
    steps = [["destroy", *folder], ["bucket"], ["publish", first], ["publish", second]]
    steps += [["up", zip], ["up", zip, "--keep-warm", "rate(5 minutes)"], ["up", zip], ["plan", zip]]
    steps += [["device", "anna", *folder], ["status"], ["invoke"], ["logs"], ["versions"], ["rollback", "--what", "model"]]
    for step in steps:
        code, said = anna.deploy(*step)
        assert code == 0, (step, said)
    with cloud.device("anna") as device:
        assert device.listening().ask([{"request_id": "r", **ROW}])["r"][TARGET] == LABEL
    code, said = anna.deploy("destroy", *folder)
    assert code == 0 and f"nothing of stack {STACK} is left" in said
    cloud.must("bucket")
    cloud.publish(model)
    cloud.must("deploy")


def test_a_person_cannot_touch_another_stack(anna, theirs):
    for arguments in (["bucket"], ["status"], ["destroy"], ["device", "x"], ["up", str(ZIP)]):
        code, said = anna.deploy(*arguments, stack="other")
        assert code != 0 and "AccessDenied" in said, said


ROLE, MORE = f"{FUNCTION}-{REGION}", json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
BOUNDARY, ADMINISTRATOR = f"arn:aws:iam::{ACCOUNT}:policy/iris-workshop-boundary", "arn:aws:iam::aws:policy/AdministratorAccess"

FORBIDDEN_TO_A_PERSON = {
    "give her function's role more": ("iam", "put_role_policy", {"RoleName": ROLE, "PolicyName": "p", "PolicyDocument": MORE}),
    "attach a policy to it": ("iam", "attach_role_policy", {"RoleName": ROLE, "PolicyArn": ADMINISTRATOR}),
    "swap its trust policy": ("iam", "update_assume_role_policy", {"RoleName": ROLE, "PolicyDocument": MORE}),
    "detach its boundary": ("iam", "delete_role_permissions_boundary", {"RoleName": ROLE}),
    "replace its boundary": ("iam", "put_role_permissions_boundary", {"RoleName": ROLE, "PermissionsBoundary": ADMINISTRATOR}),
    "make it without a boundary": ("iam", "create_role", {"RoleName": ROLE, "AssumeRolePolicyDocument": "{}"}),
    "make a new version of the boundary": (
        "iam", "create_policy_version", {"PolicyArn": BOUNDARY, "PolicyDocument": MORE, "SetAsDefault": True},
    ),
    "go back to an older version of it": ("iam", "set_default_policy_version", {"PolicyArn": BOUNDARY, "VersionId": "v1"}),
    "delete the boundary": ("iam", "delete_policy", {"PolicyArn": BOUNDARY}),
    "make herself keys": ("iam", "create_access_key", {"UserName": "anna"}),
    "read another stack's model": ("s3", "get_object", {"Bucket": f"other-{ACCOUNT}-{REGION}", "Key": "models/current.json"}),
    "call another function": ("lambda", "invoke", {"FunctionName": "other-fn", "Payload": b"{}"}),
    "delete another function": ("lambda", "delete_function", {"FunctionName": "other-fn"}),
    "make a role of another name": ("iam", "create_role", {"RoleName": "admin", "AssumeRolePolicyDocument": "{}"}),
    "make a user": ("iam", "create_user", {"UserName": "mallory"}),
    "give herself more": ("iam", "put_user_policy", {"UserName": "anna", "PolicyName": "p", "PolicyDocument": "{}"}),
    "delete another log": ("logs", "delete_log_group", {"logGroupName": "/aws/lambda/other-fn"}),
    "make another queue": ("sqs", "create_queue", {"QueueName": "other-dead-letters"}),
    "make another rule": ("events", "put_rule", {"Name": "other-keep-warm", "ScheduleExpression": "rate(1 minute)"}),
    "publish as a device": ("iot-data", "publish", {"topic": f"{STACK}/request/x", "payload": b"{}"}),
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN_TO_A_PERSON)
def test_a_person_may_not(anna, what):
    anna.must_not(*FORBIDDEN_TO_A_PERSON[what])


@pytest.mark.parametrize("what", ESCALATIONS)
def test_iam_itself_would_not_let_a_person(cloud, what):
    """Its simulation takes a call's values as not given (MiniStack)."""
    action, resource, _ = ESCALATIONS[what]
    assert not simulated(cloud, action, resource)


def test_iam_itself_would_let_a_person(cloud):
    for action, resource, values in NEEDED.values():
        assert simulated(cloud, action, resource) == (not values), action


def simulated(cloud, action, resource):
    asked = {"PolicyInputList": [json.dumps(POLICY)], "ActionNames": [action], "ResourceArns": [resource]}
    [found] = cloud.client("iam").simulate_custom_policy(**asked)["EvaluationResults"]
    return found["EvalDecision"] == "allowed"


# --- the boundary -----------------------------------------------------------


def test_a_boundary_of_somebody_else_is_left_alone_and_ours_is_brought_up_to_date(tmp_path):
    cloud = Cloud(tmp_path / "local", tmp_path / "devices")
    cloud.must("local")
    try:
        iam, text = cloud.client("iam"), ROOT / "deploy/boundary-policy.json"
        wanted = json.loads(text.read_text().replace("<ACCOUNT>", ACCOUNT))

        def document():
            version = iam.get_policy(PolicyArn=BOUNDARY)["Policy"]["DefaultVersionId"]
            return iam.get_policy_version(PolicyArn=BOUNDARY, VersionId=version)["PolicyVersion"]["Document"]

        iam.create_policy(PolicyName=BOUNDARY.rpartition("/")[2], PolicyDocument=MORE)
        code, _, err = cloud.make("boundary")
        assert code == 1 and "somebody else made it" in err and document() == json.loads(MORE)
        code, _, err = cloud.make("deploy")
        assert code == 1 and "somebody else made it" in err
        iam.tag_policy(PolicyArn=BOUNDARY, Tags=[{"Key": "project", "Value": "iris-workshop"}])
        assert "is up to date now" in cloud.must("boundary") and document() == wanted
        assert "is there" in cloud.must("boundary")
        for version in iam.list_policy_versions(PolicyArn=BOUNDARY)["Versions"]:
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=BOUNDARY, VersionId=version["VersionId"])
        iam.delete_policy(PolicyArn=BOUNDARY)
        iam.create_user(UserName="max")
        key = iam.create_access_key(UserName="max")["AccessKey"]
        code, said = Person(cloud, key["AccessKeyId"], key["SecretAccessKey"]).deploy("boundary")
        assert code == 1 and "user/max may not make the permissions boundary" in said and "make boundary" in said
        assert "is made" in cloud.must("boundary") and document() == wanted
    finally:
        cloud.must("stop")


# --- all that is asked of AWS -----------------------------------------------

NOT_A_PERSONS = {
    "iam:GetPolicyVersion": "the boundary is its owner's to read; on the local cloud a deploy looks whether it is up to date",
    "iam:SimulatePrincipalPolicy": "the account's owner's: without it `make doctor` says that it could not ask",
    "cloudformation:DescribeStacks": "on all stacks for who makes or deletes a class (deploy/README.md)",
}
NEVER_USED_HERE = {
    "cloudformation:ContinueUpdateRollback": "only after a rollback that failed, which the local cloud cannot make",
    "cloudformation:DescribeEvents": "only after a change set that AWS found wrong beforehand",
    "lambda:ListTags": "GetFunction, which CloudFormation's handlers call, gives the tags only with it",
    "s3:ListAllMyBuckets": "only in notebook 2, whose calls test_notebooks.py records",
}


RECORDED = "rec"


@pytest.fixture(scope="module")
def recorded(cloud, model, tmp_path_factory):
    """Every call of a whole life of a stack and of a class of two, by the deployer."""
    folder = tmp_path_factory.mktemp("recorded")
    first, second, changed = folder / "a.json", folder / "b.json", folder / "changed.zip"
    first.write_bytes(model)
    second.write_bytes(model.replace(b'"iterations": ', b'"iterations": 1'))
    zipped(changed, bootstrap=zipfile.ZipFile(ZIP).read("bootstrap"), more=b"x")
    devices, members = ["--dir", str(folder / "devices")], ["--n", "2", "--dir", str(folder / "class")]
    keep_warm = ["--keep-warm", "rate(5 minutes)"]
    with Recorder(cloud.url) as recorder:
        settings = {**cloud.environment, "STACK": RECORDED, "AWS_ENDPOINT_URL": recorder.url}

        def deploy(*steps):
            for step in steps:
                code, out, err = run(DEPLOY, *map(str, step), environment=settings)
                assert code in (0, 2 if step[0] == "plan" else 0), (step, out, err)

        iam = cloud.client("iam")
        iam.create_user(UserName="otto")
        key = iam.create_access_key(UserName="otto")["AccessKey"]
        keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        run(DEPLOY, "doctor", environment={**settings, **keys})
        deploy(["boundary"], ["policy"], ["plan", ZIP], ["bucket"], ["publish", first], ["publish", second], ["up", ZIP])
        deploy(["plan", changed], ["up", changed, *keep_warm], ["up", changed], ["rollback"], ["rollback", "--what", "model"])
        deploy(["device", "lily", *devices], ["device", "load", "--count", "2", *devices], ["device", "lily", *devices])
        queue = cloud.client("sqs").get_queue_url(QueueName=f"{RECORDED}-dead-letters")["QueueUrl"]
        event = {"payload": base64.b64encode(request()).decode(), "client_id": f"{RECORDED}-lily"}
        cloud.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps({"requestPayload": event}))
        deploy(["status"], ["invoke"], ["logs"], ["versions"], ["dlq"], ["redrive"])
        deploy(["class", *members, ZIP], ["class-destroy", *members], ["destroy", *devices])
    return recorder.calls


def test_every_call_is_as_awss_own_models_have_it(recorded):
    assert len(recorded) > 200
    assert problems(recorded) == set()


def test_every_call_is_allowed_and_every_right_is_used(recorded):
    needed, missing = needed_and_missing(recorded, [RECORDED, f"{RECORDED}01", f"{RECORDED}02"])
    assert {(name, on) for name, on in missing if name not in NOT_A_PERSONS} == set()
    assert {name for name, _ in missing} == NOT_A_PERSONS.keys()
    given = {action for each in POLICY["Statement"] for action in as_list(each["Action"])}
    used = {name for name, _ in needed}
    assert given - used.union(*used_by_handlers().values()) == NEVER_USED_HERE.keys()


# --- a class ----------------------------------------------------------------


def test_a_class_answers_its_own_devices_only_and_goes_together(cloud, model, tmp_path):
    settings, elsewhere = {"N": MEMBERS}, json.dumps(json.loads(model)).encode()  # as Python writes the same model
    cloud.publish(elsewhere)
    listed = cloud.must("class", **settings)
    assert listed.count(" is ready: ") == MEMBERS
    assert cloud.must("class", **settings).count(" is ready: ") == MEMBERS  # again: nothing to do, nothing broken
    names = [f"{STACK}{i:02}" for i in range(1, MEMBERS + 1)]
    for name in names:  # as a member would: unpack the archive
        archive = zipfile.ZipFile(io.BytesIO((cloud.archives / f"{name}.zip").read_bytes()))
        assert f"STACK={name}" in archive.read("STACK.txt").decode()
        archive.extractall(tmp_path / name)

    def unpacked(name):
        return tmp_path / name / f"target/devices/local/{ACCOUNT}-{REGION}/{name}/notebook"

    def member(index):
        name, other = names[index], names[index - 1]
        with Device("notebook", folder=unpacked(name), stack=name) as device:
            device.listening()
            rows = iris()[index * 5 : index * 5 + 5]
            asked = [{"request_id": f"{name}-{i}", **dict(zip(ROW, x))} for i, (x, _) in enumerate(rows)]
            answers = device.ask(asked)
            assert answers.keys() == {each["request_id"] for each in asked}
            assert all(TARGET in answer for answer in answers.values())
            assert {answer["model"] for answer in answers.values()} == {sha256(elsewhere)}
        with Device("notebook", folder=unpacked(name), stack=name) as device:
            assert device.accepted and not device.subscribe(f"{other}/response/{other}-notebook")
        impostor = f"{other}-notebook"
        with Device("notebook", folder=unpacked(name), client_id=impostor) as device:
            assert not device.accepted
        return len(answers)

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(member, range(MEMBERS))) == MEMBERS * 5

    code, _, err = cloud.make("class", N=0)
    assert code != 0 and "a class has 1 to 100 stacks" in err
    assert cloud.must("class-destroy", **settings).endswith(f"nothing of class {STACK} is left\n")
    assert not cloud.archives.exists()
    functions = [each["FunctionName"] for each in cloud.client("lambda").list_functions()["Functions"]]
    assert functions == [FUNCTION]  # the class's own stack is not of the class
    assert [each for each in cloud.client("iot").list_things()["things"] if each["thingName"].endswith("-notebook")] == []
    assert cloud.invoke(request())[TARGET] == LABEL


def test_a_class_does_not_take_over_a_stack_that_is_there(cloud):
    cloud.must("bucket", STACK=f"{STACK}02")
    code, _, err = cloud.make("class", N=3)
    assert code != 0 and f"stack {STACK}02 is there already and not of this class" in err
    assert "nothing of class" in cloud.must("class-destroy")
    cloud.must("destroy", STACK=f"{STACK}02")
