"""Deleting: only ours, only here, only on purpose; and every state that a stack can be left in.

AWS is played by a stand-in that holds stacks, change sets, things and certificates, so that it can be in states that
no cloud on a laptop can be brought into, in any account and region, and can change between two calls of ours as
another terminal changes it. The deployer is the real one. Each test sees what was called, and what is left.
"""

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from clients import DEPLOY, ROOT, ZIP, run

OURS = {"project": "iris-workshop", "stack": "del"}
HERE, ELSEWHERE = "111111111111", "222222222222"
BUCKET = f"del-{HERE}-us-east-1"
MARK = {**OURS, "target": "local", "account": HERE, "region": "us-east-1"}  # of a folder


class Raw(str):
    """XML already."""


def xml(tag, content):
    """Nested: a list becomes <member>s."""
    if isinstance(content, Raw):
        pass
    elif isinstance(content, dict):
        content = "".join(xml(*each) for each in content.items())
    elif isinstance(content, list):
        content = "".join(xml("member", each) for each in content)
    else:
        content = escape(str(content))
    return f"<{tag}>{content}</{tag}>"


class Refused(Exception):
    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Aws:
    """The stand-in. `before[call]` is done before that call is answered; `calls` are all that change something. Lists
    come in pages of one, those of a bucket in pages of 600."""

    def __init__(self):
        self.account, self.region, self.made = HERE, "us-east-1", 0
        self.stacks, self.sets, self.things, self.certificates = [], {}, {}, {}
        self.calls, self.before, self.refuse, self.buckets = [], {}, {}, {}
        self.delete_fails = self.continue_fails = None
        self.boundary = True  # is there; nobody here may read it
        self.letters, self.asked, self.call_takes = {}, [], 0
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
                if target := self.headers.get("x-amz-target"):
                    return self.say(json.dumps(aws.sqs(target.rpartition(".")[2], json.loads(body))))
                if self.path.endswith("/invocations?Qualifier=live"):
                    reply = aws.invoke(json.loads(body))
                    return self.say(json.dumps(reply)) if reply is not None else self.say("{}", 403, "AccessDeniedException")
                query = self.command == "POST" and self.path == "/"
                try:
                    status, reply, code = 200, (aws.query if query else aws.rest)(self, body), None
                except Refused as e:
                    error = {"Code": e.code, "Message": e.message}
                    xmls = xml("ErrorResponse", {"Error": error}) if query else xml("Error", error)
                    status, code = e.status, e.code
                    json_api = self.path.startswith(("/things", "/cert", "/keys", "/attached", "/target", "/2015"))
                    reply = json.dumps({"message": e.message}) if json_api else xmls
                self.say(reply, status, code)

            def say(self, reply, status=200, code=None):
                reply = reply.encode()
                self.send_response(status)
                if code:
                    self.send_header("x-amzn-errortype", code)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def happens(self, call, what=""):
        if not call.startswith(("Describe", "List", "Get", "GET")):
            self.calls.append(f"{call} {what}".strip())
        if first := self.before.pop(call, None):
            first()
        if call in self.refuse:
            raise Refused(403, "AccessDenied", f"{call} is refused")

    # --- stacks

    def stack(self, *script, tags=OURS, name="del", account=None, region=None):
        """A stack that shows these states, one a look; the last one stays."""
        self.made += 1
        arn = f"arn:aws:cloudformation:{region or self.region}:{account or self.account}:stack/{name}/{self.made}"
        made = {"id": arn, "name": name, "script": list(script), "tags": dict(tags), "events": [], "outputs": {}}
        self.stacks.append(made)
        return made

    def event(self, stack, resource, state, reason=""):
        made = {"EventId": len(stack["events"]), "LogicalResourceId": resource, "ResourceStatus": state}
        stack["events"].insert(0, {**made, "ResourceStatusReason": reason, "StackId": stack["id"], "StackName": stack["name"],
                                   "Timestamp": "2026-11-26T00:00:00Z"})  # fmt: skip

    def status(self, stack):
        return stack["script"][0]

    def find(self, name):
        for stack in self.stacks:
            if stack["id"] == name or stack["name"] == name and self.status(stack) != "DELETE_COMPLETE":
                return stack
        raise Refused(400, "ValidationError", f"Stack with id {name} does not exist")

    def query(self, request, body):
        asked = {key: values[0] for key, values in parse_qs(body).items()}
        action, name = asked["Action"], asked.get("StackName", "")
        self.happens(action, name.rpartition("/")[2])
        result = getattr(self, action)(asked)
        return xml(f"{action}Response", {f"{action}Result": result})

    def GetCallerIdentity(self, _):
        return {"Account": self.account, "Arn": f"arn:aws:iam::{self.account}:user/x", "UserId": "x"}

    def page(self, all, token):
        """One of them, and the token for the next."""
        at = int(token or 0)
        return all[at : at + 1], {"NextToken": at + 1} if at + 1 < len(all) else {}

    def DescribeStacks(self, asked):
        listed, next = [], {}
        if "StackName" in asked:
            stacks = [self.find(asked["StackName"])]
        else:
            stacks, next = self.page(self.stacks, asked.get("NextToken"))
        for stack in stacks:
            tags = [{"Key": key, "Value": value} for key, value in stack["tags"].items()]
            outputs = [{"OutputKey": key, "OutputValue": value} for key, value in stack["outputs"].items()]
            listed.append({"StackId": stack["id"], "StackName": stack["name"], "StackStatus": self.status(stack),
                           "CreationTime": "2026-11-26T00:00:00Z", "Tags": tags, "Outputs": outputs})  # fmt: skip
            if len(stack["script"]) > 1:
                stack["script"].pop(0)
        return {"Stacks": listed, **next}

    def DescribeStackEvents(self, asked):
        return {"StackEvents": self.find(asked["StackName"])["events"]}

    def change_set(self, stack, tags=OURS):
        self.made += 1
        id = f"arn:aws:cloudformation:{self.region}:{self.account}:changeSet/set/{self.made}"
        self.sets[id] = {"stack": stack, "tags": tags}
        return id

    def CreateChangeSet(self, asked):
        try:
            stack = self.find(asked["StackName"])
        except Refused:
            stack = self.stack("REVIEW_IN_PROGRESS", tags={})
        tags = {asked[f"Tags.member.{n}.Key"]: asked[f"Tags.member.{n}.Value"] for n in range(1, 4)
                if f"Tags.member.{n}.Key" in asked}  # fmt: skip
        return {"Id": self.change_set(stack, tags), "StackId": stack["id"]}

    def DescribeChangeSet(self, asked):
        id = asked["ChangeSetName"]
        tags = [{"Key": key, "Value": value} for key, value in self.sets[id]["tags"].items()]
        return {"ChangeSetId": id, "StackId": self.sets[id]["stack"]["id"], "Status": "CREATE_COMPLETE", "Tags": tags,
                "Changes": [{"ResourceChange": {"Action": "Add", "LogicalResourceId": "Bucket"}}]}  # fmt: skip

    def ListChangeSets(self, asked):
        stack = self.find(asked["StackName"])
        sets = [{"ChangeSetId": id, "StackId": stack["id"]} for id, each in self.sets.items() if each["stack"] is stack]
        sets, next = self.page(sets, asked.get("NextToken"))
        return {"Summaries": sets, **next}

    def DeleteChangeSet(self, asked):
        self.sets.pop(asked["ChangeSetName"], None)
        return {}

    def ExecuteChangeSet(self, asked):
        done = self.sets.pop(asked["ChangeSetName"])
        stack, state = done["stack"], "CREATE_COMPLETE"
        stack["script"], stack["tags"] = [state], done["tags"]
        self.event(stack, stack["name"], state)
        return {}

    def DeleteStack(self, asked):
        stack = self.find(asked["StackName"])
        if self.status(stack) == "DELETE_COMPLETE":
            return {}
        # AWS would refuse this one, too.
        assert not any(f"{stack['name']}-device" in each["policies"] for each in self.certificates.values())
        stack["script"] = ["DELETE_IN_PROGRESS", "DELETE_COMPLETE"]
        self.event(stack, stack["name"], "DELETE_IN_PROGRESS")
        if self.delete_fails:
            self.event(stack, *self.delete_fails)
            stack["script"] = ["DELETE_IN_PROGRESS", "DELETE_FAILED"]
        return {}

    def ContinueUpdateRollback(self, asked):
        stack = self.find(asked["StackName"])
        assert self.status(stack) == "UPDATE_ROLLBACK_FAILED"
        state = "UPDATE_ROLLBACK_FAILED" if self.continue_fails else "UPDATE_ROLLBACK_COMPLETE"
        self.event(stack, stack["name"], "UPDATE_ROLLBACK_IN_PROGRESS")
        if self.continue_fails:
            self.event(stack, *self.continue_fails)
        stack["script"] = ["UPDATE_ROLLBACK_IN_PROGRESS", state]
        return {}

    # --- the permissions boundary

    def GetPolicy(self, _):
        if not self.boundary:
            raise Refused(404, "NoSuchEntity", "there is no such policy")
        return {"Policy": {"DefaultVersionId": "v1"}}

    def GetPolicyVersion(self, _):
        raise Refused(403, "AccessDenied", "not yours")

    # --- dead letters: {id: until when nobody else sees it}

    def sqs(self, action, asked):
        now = time.monotonic()
        if action == "ReceiveMessage":
            seen = [id for id, until in self.letters.items() if until < now][:10]
            self.letters |= dict.fromkeys(seen, now + asked["VisibilityTimeout"])
            body = [json.dumps({"requestPayload": {"id": id}}) for id in seen]
            return {"Messages": [{"MessageId": id, "ReceiptHandle": id, "Body": each} for id, each in zip(seen, body)]}
        if action == "ChangeMessageVisibilityBatch":
            for each in asked["Entries"]:
                if each["ReceiptHandle"] in self.letters:
                    self.letters[each["ReceiptHandle"]] = now + each["VisibilityTimeout"]
            return {"Successful": [], "Failed": []}
        assert action == "DeleteMessage"
        self.letters.pop(asked["ReceiptHandle"])
        return {}

    def invoke(self, event):
        if event["id"] in self.refuse:
            return None
        began = time.monotonic()
        time.sleep(self.call_takes)
        self.asked.append((event["id"], self.letters[event["id"]] - began))
        return {}

    # --- things and certificates

    def rest(self, request, body):
        url = urlsplit(request.path)
        kind, *names = [unquote(part) for part in url.path.strip("/").split("/")]
        if kind in self.buckets:
            return self.s3(request, kind, parse_qs(url.query, keep_blank_values=True), body)
        call = f"{request.command} {kind}" + (" principals" if names[1:] == ["principals"] else "")
        self.happens(call, names[0].rpartition("/")[2] if names else "")
        arn = request.headers.get("x-amzn-principal", "")
        if call == "GET endpoint":
            return json.dumps({"endpointAddress": "x.iot.amazonaws.com"})
        if call == "GET _ministack":
            return "ca"
        if call == "GET things" and not names:
            wanted = parse_qs(url.query)["attributeValue"][0]
            listed = [{"thingName": name, "attributes": each} for name, each in self.things.items() if each.get("stack") == wanted]
            return self.listed("things", listed, url)
        if call == "POST things":
            if self.things.setdefault(names[0], json.loads(body)["attributePayload"]["attributes"]) is None:
                raise Refused(409, "ResourceAlreadyExistsException", "other attributes")
            return "{}"
        if kind == "things" and names[0] in self.things:
            if call == "GET things":
                return json.dumps({"attributes": self.things[names[0]]})
            if call == "GET things principals":
                arns = [self.arn(id) for id, c in self.certificates.items() if names[0] in c["things"]]
                return self.listed("principals", arns, url)
            if call == "DELETE things":
                assert not any(names[0] in c["things"] for c in self.certificates.values())
                return json.dumps(self.things.pop(names[0]) and {})
            things = self.certificates[arn.rpartition("/")[2]]["things"]
            (things.append if call.startswith("PUT") else things.remove)(names[0])
            return "{}"
        if call == "POST keys-and-certificate":
            self.made += 1
            id = f"c{self.made}"
            self.certificate(id, "INACTIVE", [], [])
            return json.dumps({"certificateArn": self.arn(id), "certificateId": id, "certificatePem": id,
                               "keyPair": {"PrivateKey": "key"}})  # fmt: skip
        if kind == "certificates" and names[0] in self.certificates:
            found = self.certificates[names[0]]
            if call.startswith("PUT"):
                found["status"] = parse_qs(url.query)["newStatus"][0]
            elif call.startswith("DELETE"):
                assert (found["status"], found["things"], found["policies"]) == ("INACTIVE", [], [])
                del self.certificates[names[0]]
            found = {"certificateArn": self.arn(names[0]), "certificatePem": names[0], "status": found["status"]}
            return json.dumps({"certificateDescription": found})
        if kind == "attached-policies":
            policies = self.certificates[names[0].rpartition("/")[2]]["policies"]
            return json.dumps({"policies": [{"policyName": name} for name in policies]})
        if kind == "target-policies":
            policies = self.certificates[json.loads(body)["target"].rpartition("/")[2]]["policies"]
            (policies.append if call.startswith("PUT") else policies.remove)(names[0])
            return "{}"
        code = "NoSuchBucket" if kind.startswith("del") else "ResourceNotFoundException"
        raise Refused(404, code, "there is no such thing")

    def listed(self, field, all, url):
        all, next = self.page(all, parse_qs(url.query).get("nextToken", ["0"])[0])
        return json.dumps({field: all, **{"nextToken": str(token) for token in next.values()}})

    def arn(self, id):
        return f"arn:aws:iot:{self.region}:{self.account}:cert/{id}"

    def certificate(self, id, status="ACTIVE", things=("del-lily",), policies=("del-device",)):
        self.certificates[id] = {"status": status, "things": list(things), "policies": list(policies)}


    # --- buckets: {name: (tags, [(what, key, version)])}

    def s3(self, request, name, asked, body):
        tags, objects = self.buckets[name]
        if request.command == "GET" and not asked.keys() & {"tagging", "versions"}:  # the body for a version
            return next(body.decode() for _, key, body in objects if request.path.startswith(f"/{name}/{key}"))
        what = next(iter(asked.keys() & {"tagging", "versions", "delete"}), "bucket")
        self.happens(f"{request.command} {what}", name)
        if what == "tagging":
            if not tags:
                raise Refused(404, "NoSuchTagSet", "it has no tags")
            tags = [xml("Tag", {"Key": key, "Value": value}) for key, value in tags.items()]
            return xml("Tagging", {"TagSet": Raw("".join(tags))})
        if what == "versions":
            at = int(asked.get("key-marker", [0])[0])
            listed = [xml(kind, {"Key": key, "VersionId": id, "Size": 1}) for kind, key, id in objects[at : at + 600]]
            more = at + 600 < len(objects)
            listed += [xml("IsTruncated", str(more).lower()), xml("NextKeyMarker", at + 600) * more]
            return xml("ListVersionsResult", Raw("".join(listed)))
        if what == "delete":
            gone = re.findall("<Key>(.*?)</Key><VersionId>(.*?)</VersionId>", body)
            assert 0 < len(gone) <= 1000
            kept = [key for key, _ in gone if key in self.refuse]
            objects[:] = [each for each in objects if each[1:] not in gone or each[1] in kept]
            errors = [xml("Error", {"Key": key, "Code": "AccessDenied", "Message": "held"}) for key in kept]
            return xml("DeleteResult", Raw("".join(errors)))
        assert request.command == "DELETE" and not objects
        return self.buckets.pop(name) and ""


@pytest.fixture
def aws():
    aws = Aws()
    yield aws
    aws.server.shutdown()
    aws.server.server_close()


@pytest.fixture
def deployer(aws, tmp_path):
    """Call the deployer: (exit code, all that it said). TARGET=aws finds the stand-in by its profile, as a company's
    own endpoint is found; nobody is there to be asked, which is a "no"."""
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {aws.url}\n")

    def command(*arguments, target="local", **settings):
        there = {"AWS_ENDPOINT_URL": aws.url} if target == "local" else {"AWS_CONFIG_FILE": str(tmp_path / "config")}
        environment = {
            "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_REGION": aws.region,
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "STACK": "del", "TARGET": target, **there,
            **settings,
        }  # fmt: skip
        return [DEPLOY, *map(str, arguments)], environment

    def deployer(*arguments, target="local", **settings):
        command_line, environment = command(*arguments, target=target, **settings)
        code, out, err = run(*command_line, environment=environment)
        return code, out + err

    deployer.command, deployer.devices, deployer.archives = command, tmp_path / "devices", tmp_path / "class"
    return deployer


def deletes(aws):
    return [call for call in aws.calls if call.startswith("DELETE") or call.startswith("DeleteStack")]


# --- before a stack ---------------------------------------------------------


@pytest.mark.parametrize("command", ["up", "class"])
def test_without_a_boundary_nothing_is_made_on_aws_and_it_is_said_who_makes_it(aws, deployer, command):
    aws.boundary = False
    code, said = deployer(command, ZIP, target="aws", YES="1")
    sentence = f"account {HERE} has no permissions boundary iris-workshop-boundary yet: its owner runs `make boundary TARGET=aws`"
    assert (code, aws.calls) == (1, []) and sentence in said, said


# --- the states of a stack --------------------------------------------------


@pytest.mark.parametrize("state", ["ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED"])
def test_a_first_creation_that_failed_is_deleted_by_deploy_and_only_told_by_plan(aws, deployer, state):
    stack = aws.stack(state)
    aws.event(stack, "del", "CREATE_IN_PROGRESS")
    aws.event(stack, "Bucket", "CREATE_FAILED", "it exists already")
    aws.event(stack, "del", "ROLLBACK_IN_PROGRESS")
    code, said = deployer("plan", ZIP)
    assert code == 2 and f"stack del is in {state}: its creation failed; Bucket: it exists already" in said
    assert "would be deleted and created again" in said and aws.calls == []
    code, said = deployer("up", ZIP, target="aws")
    assert code == 1 and "Delete what is left of stack del" in said and aws.calls == []  # nobody said yes
    code, said = deployer("up", ZIP)
    assert "no model in s3://" in said  # it went on, to what comes next
    assert aws.calls[0] == "DeleteStack 1" and aws.status(stack) == "DELETE_COMPLETE"
    assert aws.status(aws.find("del")) == "CREATE_COMPLETE"


def test_an_update_that_could_not_be_taken_back_is_continued_and_nothing_is_deleted(aws, deployer):
    stack = aws.stack("UPDATE_ROLLBACK_FAILED")
    stack["outputs"] = {"BucketName": "del-b"}
    aws.event(stack, "del", "UPDATE_ROLLBACK_IN_PROGRESS")
    aws.event(stack, "Function", "UPDATE_FAILED", "its code is gone")
    code, said = deployer("plan", ZIP)
    assert code == 2 and "Function: its code is gone; its rollback would be continued" in said and aws.calls == []
    aws.continue_fails = "Function", "UPDATE_FAILED", "still gone"
    code, said = deployer("up", ZIP)
    assert code == 1 and "Function: still gone" in said and "`make deploy` continues again" in said
    aws.continue_fails = None
    code, said = deployer("up", ZIP)
    assert "bucket del-b is there" in said and aws.status(stack) == "UPDATE_ROLLBACK_COMPLETE"
    assert aws.calls == ["ContinueUpdateRollback 1"] * 2


def test_a_failed_deletion_names_what_stands_in_the_way_and_the_second_finishes(aws, deployer):
    stack = aws.stack("CREATE_COMPLETE")
    aws.delete_fails = "Bucket", "DELETE_FAILED", "it is not empty"
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "could not be deleted (Bucket: it is not empty)" in said and "`make destroy` again" in said
    for command in ("plan", "up"):
        code, said = deployer(command, ZIP)
        assert code == 1 and "in DELETE_FAILED; Bucket: it is not empty" in said and "`make destroy` again" in said
    aws.delete_fails = None
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and aws.status(stack) == "DELETE_COMPLETE", said


def test_a_device_policy_that_aws_still_holds_is_tried_again_and_nothing_else_is(aws, deployer):
    stack = aws.stack("CREATE_COMPLETE")
    aws.delete_fails = "DevicePolicy", "DELETE_FAILED", "still attached"
    let_go = lambda: setattr(aws, "delete_fails", None)  # noqa: E731
    aws.before["DeleteStack"] = lambda: aws.before.update(DeleteStack=let_go)
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and "(DevicePolicy: still attached): trying again" in said, said
    assert aws.status(stack) == "DELETE_COMPLETE" and deletes(aws) == ["DeleteStack 1"] * 2
    aws.stack("CREATE_COMPLETE")
    aws.delete_fails = "del", "DELETE_FAILED", "another stack uses its export"  # no resource of it
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "could not be deleted" in said and "trying again" not in said


@pytest.mark.parametrize(
    "state, then",
    [
        ("CREATE_IN_PROGRESS", "CREATE_COMPLETE"), ("UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"),
        ("UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE"), ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_COMPLETE"),
        ("ROLLBACK_IN_PROGRESS", "ROLLBACK_COMPLETE"), ("DELETE_IN_PROGRESS", "DELETE_COMPLETE"),
    ],
)  # fmt: skip
def test_what_is_moving_is_waited_for_and_said_once(aws, deployer, state, then):
    aws.stack(state, state, state, then)
    code, said = deployer("plan", ZIP)
    assert code == 2, said
    assert said.count(f"stack del is in {state}: waiting for it, 15 minutes at most") == 1
    assert deletes(aws) == (["DeleteStack 2"] if then == "DELETE_COMPLETE" else [])  # only plan's own, empty one


def test_a_state_that_no_command_here_leads_to_is_said(aws, deployer):
    aws.stack("IMPORT_ROLLBACK_FAILED")
    code, said = deployer("up", ZIP)
    assert code == 1 and "roll it back in the CloudFormation console" in said and aws.calls == []


# --- a question that is not answered by yes ---------------------------------


def all_of_it(aws, deployer):
    """One of each that can be deleted: a stack, its device and folder, a class's stack and folder."""
    aws.stack("CREATE_COMPLETE")
    aws.stack("CREATE_COMPLETE", name="del01", tags={**OURS, "stack": "del01", "class": "del"})
    assert deployer("device", "lily", "--dir", deployer.devices, target="aws", YES="1")[0] == 0
    deployer.archives.mkdir()
    (deployer.archives / "class.json").write_text(json.dumps({**MARK, "target": "aws"}))
    aws.calls.clear()


@pytest.mark.parametrize("answer", [None, "n", "", "ja", "y es", "y"])
def test_without_a_yes_nothing_is_deleted(aws, deployer, answer):
    all_of_it(aws, deployer)
    for arguments in (["destroy", "--dir", deployer.devices], ["class-destroy", "--dir", deployer.archives]):
        before = place(deployer.devices), place(deployer.archives)
        command, environment = deployer.command(*arguments, target="aws")
        terminal, theirs = pty.openpty()
        os.write(terminal, f"{answer}\n".encode())
        with open(theirs) as keyboard:
            keyboard = subprocess.DEVNULL if answer is None else keyboard
            done = subprocess.run(command, cwd=ROOT, env=environment, stdin=keyboard, capture_output=True, text=True, timeout=60)
        os.close(terminal)
        if answer == "y":
            assert done.returncode == 0 and f"in AWS account {HERE}, region us-east-1? [y/N]" in done.stdout, done.stderr
        else:
            assert done.returncode == 1 and ("there is no terminal to ask" if answer is None else "stopped, nothing was changed") in done.stderr
            assert aws.calls == [] and before == (place(deployer.devices), place(deployer.archives))
    if answer == "y":
        assert not aws.things and not aws.certificates and {aws.status(each) for each in aws.stacks} == {"DELETE_COMPLETE"}


def test_a_roll_back_is_not_continued_without_a_yes(aws, deployer):
    aws.stack("UPDATE_ROLLBACK_FAILED")
    code, said = deployer("up", ZIP, target="aws")
    assert code == 1 and "Continue the rollback of stack del" in said and aws.calls == []


# --- another terminal -------------------------------------------------------


def test_plan_and_a_no_leave_nothing_and_take_nothing(aws, deployer):
    assert deployer("plan", ZIP)[0] == 2
    assert deletes(aws) == ["DeleteStack 1"] and aws.sets == {}
    aws.calls.clear()
    assert deployer("up", ZIP, target="aws")[0] == 1
    assert deletes(aws) == ["DeleteStack 3"] and aws.sets == {}
    aws.calls.clear()
    waiting = aws.stack("REVIEW_IN_PROGRESS", tags={})
    assert deployer("plan", ZIP)[0] == 2
    assert deletes(aws) == [] and aws.status(waiting) == "REVIEW_IN_PROGRESS"  # it was there before


def other_set(aws):
    aws.change_set(aws.find("del"))


def other_deploy(aws):
    stack = aws.find("del")
    aws.ExecuteChangeSet({"ChangeSetName": aws.change_set(stack)})


def other_stack(aws):
    aws.DeleteStack({"StackName": "del"})
    aws.find("del")["script"] = ["DELETE_COMPLETE"]
    aws.stack("CREATE_COMPLETE")


@pytest.mark.parametrize("race", [other_set, other_deploy, other_stack])
@pytest.mark.parametrize("command, target", [("plan", "local"), ("up", "aws")])
def test_a_no_never_deletes_what_another_terminal_has_made_meanwhile(aws, deployer, race, command, target):
    aws.before["DeleteChangeSet"] = lambda: race(aws)
    code, said = deployer(command, ZIP, target=target)
    assert code == (2 if command == "plan" else 1), said
    assert deletes(aws) == [] and aws.status(aws.find("del")) in ("REVIEW_IN_PROGRESS", "CREATE_COMPLETE")


def test_destroy_deletes_the_stack_that_it_listed_and_no_other(aws, deployer):
    aws.stack("CREATE_COMPLETE")
    # The first look is answered; before the second, the stack is another.
    aws.before["DescribeStacks"] = lambda: aws.before.update(DescribeStacks=lambda: other_stack(aws))
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "is not the one that was listed any more" in said
    assert deletes(aws) == [] and aws.status(aws.find("del")) == "CREATE_COMPLETE"
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and deletes(aws) == ["DeleteStack 2"], said


def test_what_is_left_of_a_stack_is_deleted_only_while_it_is_as_it_was_shown(aws, deployer):
    aws.stack("ROLLBACK_COMPLETE", "DELETE_IN_PROGRESS", "DELETE_COMPLETE")
    code, said = deployer("up", ZIP)
    assert code == 1 and "stack del has changed meanwhile" in said and aws.calls == []
    stack = aws.stack("ROLLBACK_COMPLETE")
    aws.before["DescribeStacks"] = lambda: aws.before.update(DescribeStacks=lambda: other_stack(aws))
    code, said = deployer("up", ZIP)
    assert code == 1 and "stack del has changed meanwhile" in said and aws.calls == []
    assert aws.status(stack) == "DELETE_COMPLETE" and aws.status(aws.find("del")) == "CREATE_COMPLETE"


def test_a_stack_that_is_made_in_the_last_moment_is_not_deleted(aws, deployer):
    stack = aws.stack("CREATE_COMPLETE")
    aws.before["DeleteStack"] = lambda: other_stack(aws)
    assert deployer("destroy", "--dir", deployer.devices)[0] == 0
    assert aws.status(stack) == "DELETE_COMPLETE" and aws.status(aws.find("del")) == "CREATE_COMPLETE"


def test_a_stack_that_has_become_somebody_elses_after_the_question_stays(aws, deployer):
    stack = aws.stack("CREATE_COMPLETE")
    looks = iter(range(3))

    def look():
        if next(looks) < 2:
            aws.before["DescribeStacks"] = look
        else:  # the third is the last before it is deleted
            stack["tags"] = {}

    aws.before["DescribeStacks"] = look
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "has no tag" in said and aws.calls == []


def test_a_device_that_is_made_meanwhile_is_said_and_goes_with_the_next_run(aws, deployer):
    aws.stack("CREATE_COMPLETE")
    aws.before["DeleteStack"] = lambda: aws.things.update({"del-late": OURS})
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "devices are left: del-late: run `make destroy` again" in said
    assert deployer("destroy", "--dir", deployer.devices)[0] == 0 and not aws.things


# --- somebody else's --------------------------------------------------------

FOREIGN = {"no tags": {}, "another project": {**OURS, "project": "x"}, "another stack's": {**OURS, "stack": "x"}}


@pytest.mark.parametrize("command", ["destroy", "up", "plan", "bucket"])
@pytest.mark.parametrize("tags", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("state", ["UPDATE_COMPLETE", "ROLLBACK_COMPLETE", "UPDATE_ROLLBACK_FAILED"])
def test_a_foreign_stack_is_left_alone(aws, deployer, command, tags, state):
    aws.stack(state, tags=tags)["outputs"] = {"BucketName": BUCKET}
    aws.buckets[BUCKET] = tags, [("Version", "a", "1")]
    code, said = deployer(command, *([ZIP] if command in ("up", "plan") else []))
    assert code == 1 and "has no tag project=iris-workshop" in said and "choose another STACK" in said
    assert aws.calls == []


@pytest.mark.parametrize("command", ["destroy", "up", "plan", "bucket", "class-destroy"])
@pytest.mark.parametrize("elsewhere", [{"account": ELSEWHERE}, {"region": "eu-west-1"}], ids=["account", "region"])
def test_a_stack_of_another_account_or_region_is_left_alone(aws, deployer, command, elsewhere):
    aws.stack("ROLLBACK_COMPLETE", **elsewhere)
    aws.stack("ROLLBACK_COMPLETE", name="del01", tags={**OURS, "stack": "del01", "class": "del"}, **elsewhere)
    folder = {"destroy": ["--dir", deployer.devices], "class-destroy": ["--dir", deployer.archives]}
    code, said = deployer(command, *([ZIP] if command in ("up", "plan") else folder.get(command, [])))
    assert f"stack del in account {HERE}, region us-east-1 has no tag" in said or "nothing of class del is there" in said
    assert aws.calls == []


def test_a_foreign_stack_under_review_is_not_destroyed_and_ours_is(aws, deployer):
    stack = aws.stack("REVIEW_IN_PROGRESS", tags={})
    aws.change_set(stack)
    theirs = aws.change_set(stack, tags={})
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and "has no tag" in said and aws.calls == []
    aws.sets[theirs]["tags"] = OURS
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and deletes(aws) == ["DeleteStack 1"], said


def test_a_thing_of_the_same_attribute_but_not_ours_stays(aws, deployer):
    aws.things |= {"del-lily": OURS, "del-theirs": {"stack": "del"}, "other-lily": OURS, "del-rose": OURS}
    for id in ("c1", "c2", "c3"):
        aws.certificate(id, things=["del-rose" if id == "c3" else "del-lily"])
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and list(aws.things) == ["del-theirs", "other-lily"] and aws.certificates == {}, said


def test_a_thing_that_has_become_somebody_elses_meanwhile_stays(aws, deployer):
    aws.things["del-lily"] = OURS
    aws.certificate("c1")
    aws.before["GET certificates"] = aws.before["GET things"] = lambda: aws.before.update(
        {"GET things": lambda: aws.things.update({"del-lily": {}})}
    )
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert "del-lily is not ours any more: it stays" in said and list(aws.certificates) == ["c1"] and deletes(aws) == []


def test_a_certificate_with_other_rights_too_is_only_detached(aws, deployer):
    aws.things["del-lily"] = OURS
    aws.certificate("c1", policies=["del-device", "theirs"])
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and "certificate c1 has other policies" in said
    assert aws.certificates["c1"] == {"status": "ACTIVE", "things": [], "policies": ["del-device", "theirs"]}


TAGS = {"ours": OURS, **FOREIGN}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("stack", [False, True])
def test_of_buckets_without_a_stack_only_ours_is_emptied_and_deleted(aws, deployer, tags, stack):
    objects = [("Version", "a", "1"), ("DeleteMarker", "a", "2")]
    aws.buckets[BUCKET] = tags, list(objects)
    if stack:  # one that broke off before the bucket became its own
        aws.stack("ROLLBACK_COMPLETE")
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and (BUCKET in aws.buckets) == (tags != OURS), said
    assert tags == OURS or aws.buckets[BUCKET] == (tags, objects)


def test_a_bucket_of_many_objects_is_emptied_whole_and_a_second_run_finishes(aws, deployer):
    objects = [("Version" if n % 2 else "DeleteMarker", f"k{n}", f"v{n}") for n in range(1201)]
    aws.buckets[BUCKET] = OURS, objects
    aws.refuse["k1100"] = True
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and f"could not delete s3://{BUCKET}/k1100: held" in said and "1201 object versions" in said
    assert [key for _, key, _ in objects] == ["k1100"]
    aws.refuse.clear()
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and not aws.buckets, said


def test_a_bucket_that_nobody_may_look_at_is_not_taken_for_none(aws, deployer):
    aws.buckets[BUCKET] = OURS, []
    aws.refuse["GET tagging"] = True
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 1 and f"could not read the tags of bucket {BUCKET}" in said and aws.calls == []


# --- another target, account, region or stack -------------------------------


def place(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ELSEWHERES = {"account": {"account": ELSEWHERE}, "region": {"region": "eu-west-1"}, "target": {"target": "aws"}, "stack": {"STACK": "del2"}}


def move(aws, elsewhere):
    """Put the stand-in there; the deployer's settings for it."""
    settings = {"YES": "1"}
    for name, value in ELSEWHERES[elsewhere].items():
        if name in ("account", "region"):
            setattr(aws, name, value)
        else:
            settings[name] = value
    return settings


@pytest.mark.parametrize("elsewhere", ELSEWHERES)
@pytest.mark.parametrize("command", [["destroy"], ["device", "lily"]])
def test_a_devices_keys_are_not_touched_from_elsewhere(aws, deployer, elsewhere, command):
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0
    before, settings = place(deployer.devices), move(aws, elsewhere)
    aws.things.clear()  # there, it is another cloud
    code, said = deployer(*command, "--dir", deployer.devices, **settings)
    assert place(deployer.devices) == before
    assert "nothing of stack" in said or "belongs to another stack, account or region" in said


@pytest.mark.parametrize("elsewhere", ELSEWHERES)
def test_nor_where_a_device_of_the_same_name_is_deleted(aws, deployer, elsewhere):
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0
    [known] = aws.certificates
    aws.certificate(known, things=[], policies=[])  # as where the making was broken off: no policy says whose it is
    before, settings = place(deployer.devices), move(aws, elsewhere)
    stack = settings.get("STACK", "del")
    aws.things = {f"{stack}-lily": {**OURS, "stack": stack}}
    aws.certificate("c", things=[f"{stack}-lily"], policies=[f"{stack}-device"])
    code, said = deployer("destroy", "--dir", deployer.devices, **settings)
    assert code == 0 and place(deployer.devices) == before, said
    assert list(aws.certificates) == [known] and not aws.things


def test_a_local_clouds_keys_are_known_by_its_port_and_those_of_aws_by_none(aws, deployer):
    for target in ("local", "aws"):
        there = {"target": target, "YES": "1"}
        assert deployer("device", "lily", "--dir", deployer.devices, "--port", 8883, **there)[0] == 0
        aws.things.clear(), aws.certificates.clear()  # the other cloud has none
        before = place(deployer.devices)
        code, said = deployer("destroy", "--dir", deployer.devices, "--port", 8884, **there)
        assert code == 0 and place(deployer.devices) == (before if target == "local" else {}), said
        assert deployer("destroy", "--dir", deployer.devices, "--port", 8883, **there)[0] == 0
        assert not deployer.devices.exists() and not aws.certificates


def test_without_a_folder_each_place_has_its_own(aws, deployer):
    folders = set()
    for settings in ({}, {"target": "aws"}, {"STACK": "del2"}):
        for aws.account, aws.region in ((HERE, "us-east-1"), (ELSEWHERE, "us-east-1"), (HERE, "eu-west-1")):
            code, said = deployer("device-dir", "lily", **settings)
            target, stack = settings.get("target", "local"), settings.get("STACK", "del")
            folder, *notes = said.splitlines()  # what is on stderr comes last
            assert (code, folder) == (0, f"target/devices/{target}/{aws.account}-{aws.region}/{stack}/lily")
            noted = [note for note in notes if note.startswith(f"note: your AWS settings send calls to {aws.url}: ")]
            assert len(noted) == len(notes) == (target == "aws")
            folders.add(folder)
    assert len(folders) == 9


@pytest.mark.parametrize("elsewhere", ELSEWHERES)
def test_class_destroy_from_elsewhere_keeps_the_class_keys(aws, deployer, elsewhere):
    """The only copy of thirty people's keys, and a command typed without TARGET=aws."""
    deployer.archives.mkdir()
    (deployer.archives / "class.json").write_text(json.dumps(MARK))
    (deployer.archives / "del01.zip").write_text("keys")
    before, settings = place(deployer.archives), move(aws, elsewhere)
    code, said = deployer("class-destroy", "--dir", deployer.archives, **settings)
    assert code == 1 and "it may hold another class's only keys and is left alone" in said
    assert place(deployer.archives) == before and aws.calls == []
    aws.account, aws.region = HERE, "us-east-1"
    code, said = deployer("class-destroy", "--dir", deployer.archives)  # from here it goes
    assert code == 0 and not deployer.archives.exists(), said


def test_class_destroy_takes_only_stacks_that_are_ours_too(aws, deployer):
    member = lambda name, **tags: aws.stack("CREATE_COMPLETE", name=name, tags={**OURS, "stack": name, **tags})  # noqa: E731
    theirs = [aws.stack("CREATE_COMPLETE", name="del01", tags={"class": "del"}), member("del02", **{"class": "x"})]
    theirs += [member("del03"), member("other", **{"class": "del"})]
    ours = [member("del04", **{"class": "del"}), member("del05", **{"class": "del"})]
    aws.stack("DELETE_COMPLETE", name="del06", tags={**OURS, "stack": "del06", "class": "del"})
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 0 and "stack del01" not in said and "stack del06" not in said, said
    assert {aws.status(each) for each in theirs} == {"CREATE_COMPLETE"} and {aws.status(each) for each in ours} == {"DELETE_COMPLETE"}


@pytest.mark.parametrize("tags", [{}, {"class": "x"}, {"stack": "x"}, {"project": "x"}, None], ids=str)
def test_a_member_that_was_broken_off_before_it_had_tags_goes_on_or_is_deleted(aws, deployer, model, tags):
    waiting = aws.stack("REVIEW_IN_PROGRESS", tags={}, name="del01")
    if tags is not None:  # None: without a change set nothing says whose it is; then it may be gone on with, not deleted
        for each in ({}, tags):
            aws.change_set(waiting, {**OURS, "stack": "del01", "class": "del", **each})
    aws.buckets[BUCKET] = OURS, [("Version", "models/current.json", model)]
    code, said = deployer("class", ZIP, "--dir", deployer.archives, target="aws", N="1")
    assert code == 1 and ("choose another STACK" if tags else "there is no terminal to ask") in said, said
    assert aws.calls == []
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 0 and aws.status(waiting) == ("DELETE_COMPLETE" if tags == {} else "REVIEW_IN_PROGRESS"), said


def a_class(aws, deployer):
    """One member, with a certificate that only the class's folder knows of."""
    stack = aws.stack("CREATE_COMPLETE", name="del01", tags={**OURS, "stack": "del01", "class": "del"})
    deployer.archives.mkdir()
    (deployer.archives / "class.json").write_text(json.dumps(MARK))
    aws.refuse["PUT things principals"] = True
    assert deployer("device", "notebook", "--dir", deployer.archives / "del01/devices", STACK="del01")[0] == 1
    aws.refuse.clear()
    assert len(aws.certificates) == 1
    return stack


@pytest.mark.parametrize("step", ["DeleteStack", "DELETE certificates", "DELETE things"])
def test_a_class_that_could_not_be_deleted_keeps_its_folder_and_the_second_run_finishes(aws, deployer, step):
    stack = a_class(aws, deployer)
    aws.refuse[step] = True
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 1 and "1 of 1 failed: run the same command again" in said and (deployer.archives / "class.json").exists()
    aws.refuse.clear()
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 0 and not deployer.archives.exists() and aws.status(stack) == "DELETE_COMPLETE", said
    assert not aws.certificates and not aws.things


def test_a_stack_that_joins_the_class_meanwhile_keeps_the_folder(aws, deployer):
    a_class(aws, deployer)
    late = {**OURS, "stack": "del02", "class": "del"}
    aws.before["DeleteStack"] = lambda: aws.stack("CREATE_COMPLETE", name="del02", tags=late)
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 1 and "1 stack left: run `make class-destroy` again" in said and deployer.archives.exists()
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 0 and not deployer.archives.exists(), said


def test_a_folder_that_has_become_another_classs_meanwhile_stays(aws, deployer):
    a_class(aws, deployer)
    mark = json.dumps({**MARK, "project": "x"})
    aws.before["DeleteStack"] = lambda: (deployer.archives / "class.json").write_text(mark)
    code, said = deployer("class-destroy", "--dir", deployer.archives)
    assert code == 1 and "it may hold another class's only keys and is left alone" in said and deployer.archives.exists()


# --- interrupted ------------------------------------------------------------

MAKING = ["POST things", "POST keys-and-certificate", "PUT things principals", "PUT target-policies", "PUT certificates"]
UNMAKING = ["PUT certificates", "POST target-policies", "DELETE things principals", "DELETE certificates", "DELETE things"]


@pytest.mark.parametrize("step", MAKING)
def test_a_device_whose_making_was_broken_off_is_made_or_taken_away_whole(aws, deployer, step):
    for command, left in ((["device", "lily"], 1), (["destroy"], 0)):
        aws.refuse[step] = True
        assert deployer("device", "lily", "--dir", deployer.devices)[0] == 1
        aws.refuse.clear()
        code, said = deployer(*command, "--dir", deployer.devices)
        assert code == 0, said
        good = {"status": "ACTIVE", "things": ["del-lily"], "policies": ["del-device"]}
        assert list(aws.certificates.values()) == [good] * left and len(aws.things) == left
        assert deployer("destroy", "--dir", deployer.devices)[0] == 0
        assert not aws.certificates and not aws.things and not deployer.devices.exists()


def test_a_device_whose_folder_was_lost_is_made_anew_and_an_interruption_leaves_nothing(aws, deployer):
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0
    deployer.devices.rename(deployer.devices.with_name("lost"))
    aws.certificate("second")  # it is this one that is detached and not deleted

    def broken_off():
        raise Refused(403, "AccessDenied", "refused")

    aws.before["DELETE certificates"] = lambda: aws.before.update({"DELETE certificates": broken_off})
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 1
    assert "second" in aws.certificates
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0 and len(aws.certificates) == 1


def test_a_certificate_whose_thing_is_gone_goes_with_its_folder(aws, deployer):
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0
    aws.things.clear()
    for certificate in aws.certificates.values():
        certificate["things"] = []
    assert deployer("destroy", "--dir", deployer.devices)[0] == 0
    assert not aws.certificates and not deployer.devices.exists()


@pytest.mark.parametrize("folder", ["with its folder", "from another machine", "with an older folder"])
@pytest.mark.parametrize("step", UNMAKING)
def test_a_devices_end_that_was_broken_off_is_finished_by_the_next_run(aws, deployer, step, folder):
    assert deployer("device", "lily", "--dir", deployer.devices)[0] == 0
    if folder == "from another machine":
        deployer.devices.rename(deployer.devices.with_name("theirs"))
    elif folder == "with an older folder":  # of before another machine made the device anew
        file = deployer.devices / "lily/endpoint.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "certificate_id": "gone"}))
        aws.certificate("second")
    aws.calls.clear()
    aws.refuse[step] = True
    assert deployer("destroy", "--dir", deployer.devices)[0] == 1
    if step != UNMAKING[0]:
        first = next(iter(aws.certificates.values()), {"status": "INACTIVE"})
        assert first["status"] == "INACTIVE"  # it was switched off before anything else
    aws.refuse.clear()
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and not aws.certificates and not aws.things and not deployer.devices.exists(), said
    order = [" ".join(call.split()[:3 if "principals" in call else 2]) for call in aws.calls]
    assert [each for each in UNMAKING if each in order] == sorted(UNMAKING, key=order.index)


def test_what_aws_has_not_let_go_of_yet_is_waited_for(aws, deployer):
    aws.things["del-lily"] = OURS
    aws.certificate("c1")

    def busy():
        raise Refused(409, "DeleteConflictException", "it is still attached")

    aws.before |= {"DELETE certificates": busy, "DELETE things": busy}
    code, said = deployer("destroy", "--dir", deployer.devices)
    assert code == 0 and not aws.certificates and not aws.things, said


def test_ctrl_c_between_two_devices_stops_and_the_same_command_goes_on(aws, deployer):
    command, environment = deployer.command("device", "load", "--count", "1000", "--dir", deployer.devices)
    making = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while len(aws.certificates) < 3:
        time.sleep(0.01)
    making.send_signal(signal.SIGINT)
    _, said = making.communicate(timeout=20)
    made = len(aws.things)
    assert making.returncode == 1 and f"stopped after {made} of 1000 devices: the same command continues" in said
    assert 3 <= made < 900 and all(each["policies"] and each["things"] for each in aws.certificates.values())
    code, said = deployer("device", "load", "--count", made + 2, "--dir", deployer.devices)
    assert code == 0 and f"{made + 2} devices, 2 of them new" in said


# --- dead letters -----------------------------------------------------------


def test_a_dead_letter_is_hidden_from_others_while_it_is_sent_again(aws, deployer):
    """Ten calls together take longer than SQS was asked to hide them for."""
    aws.stack("CREATE_COMPLETE")["outputs"] = {"DeadLettersUrl": f"{aws.url}/1/del-dead-letters"}
    aws.letters, aws.call_takes = {f"m{n}": 0 for n in range(10)}, 0.5
    code, said = deployer("redrive", "--ours", 4)
    assert code == 0 and "10 dead letters sent again and answered" in said and not aws.letters, said
    assert [id for id, _ in aws.asked] == [f"m{n}" for n in range(10)]
    assert min(left for _, left in aws.asked) > 1  # the most that a call may take


def test_a_dead_letter_that_fails_again_is_kept(aws, deployer):
    aws.stack("CREATE_COMPLETE")["outputs"] = {"DeadLettersUrl": f"{aws.url}/1/del-dead-letters"}
    aws.letters, aws.refuse = {"good": 0, "bad": 0}, {"bad": True}
    code, said = deployer("redrive")
    assert code == 1 and "1 failed again and stay in the queue" in said and list(aws.letters) == ["bad"], said
