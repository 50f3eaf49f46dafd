"""What the local cloud does not check in template.yaml: who may do what, and what stays closed.

cfn-lint's decoder reads the file, so `!Sub x` is {"Fn::Sub": "x"} here. Its rules are checked by `make test`.
"""

from pathlib import Path

import cfnlint.decode
import pytest

TEMPLATE = Path(__file__).resolve().parents[1] / "template.yaml"


@pytest.fixture(scope="module")
def template():
    template, problems = cfnlint.decode.decode(str(TEMPLATE))
    assert not problems
    return template


def statements(node):
    """Every policy statement, wherever it stands."""
    if isinstance(node, dict):
        if "Effect" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from statements(each)


def as_list(value):
    return value if isinstance(value, list) else [value]


def test_nothing_is_allowed_on_everything(template):
    allowed = [each for each in statements(template) if each["Effect"] == "Allow"]
    assert len(allowed) >= 10
    for statement in allowed:
        assert not {"NotAction", "NotResource", "NotPrincipal"} & statement.keys()
        assert "Resource" in statement or "Principal" in statement  # a trust policy has no resource
        assert "*" not in as_list(statement.get("Resource", []))
        assert statement.get("Principal") not in ("*", {"AWS": "*"})
        assert not any("*" in action for action in as_list(statement["Action"]))


def test_only_our_rule_and_our_schedule_may_call_the_function(template):
    permissions = [r for r in template["Resources"].values() if r["Type"] == "AWS::Lambda::Permission"]
    assert [each["Properties"] for each in permissions] == [{
        "FunctionName": {"Ref": "Live"},
        "Action": "lambda:InvokeFunction",
        "Principal": "iot.amazonaws.com",
        "SourceAccount": {"Ref": "AWS::AccountId"},
        "SourceArn": {
            "Fn::Sub": "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:rule/${AWS::StackName}_rule"
        },
    }, {
        "FunctionName": {"Ref": "Live"},
        "Action": "lambda:InvokeFunction",
        "Principal": "events.amazonaws.com",
        "SourceAccount": {"Ref": "AWS::AccountId"},
        "SourceArn": {"Fn::GetAtt": ["KeepWarmRule", "Arn"]},
    }]  # fmt: skip
    assert template["Resources"]["Rule"]["Properties"]["RuleName"] == {"Fn::Sub": "${AWS::StackName}_rule"}


def test_the_bucket_is_private_encrypted_versioned_and_tls_only(template):
    bucket = template["Resources"]["Bucket"]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"]) == {
        "BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"
    }  # fmt: skip
    assert all(value is True for value in bucket["PublicAccessBlockConfiguration"].values())
    [encryption] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"] in ("AES256", "aws:kms")
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}

    policy = template["Resources"]["BucketPolicy"]
    assert policy["Condition"] == "IsTlsOnly" and policy["Properties"]["Bucket"] == {"Ref": "Bucket"}
    assert template["Conditions"]["IsTlsOnly"] == {"Fn::Equals": [{"Ref": "TlsOnly"}, "true"]}
    assert template["Parameters"]["TlsOnly"]["Default"] == "true"
    [deny] = statements(policy)
    assert (deny["Effect"], deny["Principal"], deny["Action"]) == ("Deny", "*", "s3:*")
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    arn = "arn:${AWS::Partition}:s3:::${Bucket}"
    assert deny["Resource"] == [{"Fn::Sub": arn}, {"Fn::Sub": f"{arn}/*"}]


def test_logs_end_and_dead_letters_are_encrypted(template):
    logs = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::Logs::LogGroup"]
    assert logs and all(1 <= each["RetentionInDays"] <= 30 for each in logs)
    assert template["Resources"]["DeadLetters"]["Properties"]["SqsManagedSseEnabled"] is True


def test_a_device_is_bound_to_its_own_name(template):
    policy = list(statements(template["Resources"]["DevicePolicy"]))
    assert [each["Action"] for each in policy] == ["iot:Connect", "iot:Publish", "iot:Subscribe", "iot:Receive"]
    places = ["client", "topic/${AWS::StackName}/request", "topicfilter/${AWS::StackName}/response"]
    for statement, place in zip(policy, [*places, "topic/${AWS::StackName}/response"], strict=True):
        arn = statement["Resource"]["Fn::Sub"]
        assert arn.endswith(f":{place}/${{!iot:Connection.Thing.ThingName}}")
    assert policy[0]["Condition"] == {"Bool": {"iot:Connection.Thing.IsAttached": "true"}}
