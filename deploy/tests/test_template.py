"""What the local cloud does not check in template.yaml: who may do what, and what stays closed.

cfn-lint's decoder reads the file, so `!Sub x` is {"Fn::Sub": "x"} here. Its rules are checked by `make test`.

checkov, which `make test-all` runs, looks at the same template (checkov.yaml). It takes a minute to install, so what
it checks there is checked here too; and what it has not looked at yet fails the first test.
"""

import json
from pathlib import Path

import cfnlint.decode
import parliament
import pytest
from botocore.loaders import Loader

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deploy/template.yaml"
DEPLOYER, BOUNDARY = (TEMPLATE.with_name(f"{name}-policy.json") for name in ("deployer", "boundary"))


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


def resolved(node):
    """The template with some stack's names in it, as CloudFormation would fill them in."""
    if isinstance(node, list):
        return [resolved(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node == {"Fn::GetAtt": ["DeadLetters", "Arn"]}:
        return "arn:aws:sqs:eu-west-1:123456789012:iris-dead-letters"
    if "Ref" in node or "Fn::Sub" in node:
        text = node.get("Fn::Sub", f"${{{node.get('Ref')}}}")
        names = {"Partition": "aws", "Region": "eu-west-1", "AccountId": "123456789012", "StackName": "iris"}
        for name, value in names.items():
            text = text.replace(f"${{AWS::{name}}}", value)
        text = text.replace("${Bucket}", "iris-123456789012-eu-west-1").replace("${!", "${")
        assert "${AWS" not in text
        return text
    return {key: resolved(value) for key, value in node.items()}


def iam_policies(template):
    """Every IAM policy of the project, by name, as AWS would get it."""
    for name, resource in template["Resources"].items():
        if resource["Type"] == "AWS::IAM::Role":
            [policy] = resource["Properties"]["Policies"]
            yield name, resolved(policy["PolicyDocument"])
        if resource["Type"] == "AWS::S3::BucketPolicy":
            yield name, resolved(resource["Properties"]["PolicyDocument"])
    for path in (DEPLOYER, BOUNDARY):
        text = path.read_text()
        for name, value in {"<STACK>": "iris", "<ACCOUNT>": "123456789012", "<REGION>": "eu-west-1"}.items():
            text = text.replace(name, value)
        yield path.name, json.loads(text)


def as_list(value):
    return value if isinstance(value, list) else [value]


CHECKED = {
    "AWS::Budgets::Budget": "Budget NotificationsWithSubscribers",
    "AWS::CloudWatch::Alarm": "AlarmActions AlarmDescription AlarmName ComparisonOperator Dimensions EvaluationPeriods "
    "MetricName Namespace OKActions Period Statistic Threshold TreatMissingData",
    "AWS::CloudWatch::Dashboard": "DashboardBody DashboardName",
    "AWS::Events::Rule": "Description Name ScheduleExpression Targets",
    "AWS::IAM::Role": "AssumeRolePolicyDocument PermissionsBoundary Policies RoleName Tags",
    "AWS::IoT::Policy": "PolicyDocument PolicyName",
    "AWS::IoT::TopicRule": "RuleName TopicRulePayload",
    "AWS::Lambda::Alias": "FunctionName FunctionVersion Name",
    "AWS::Lambda::EventInvokeConfig": "DestinationConfig FunctionName MaximumEventAgeInSeconds MaximumRetryAttempts "
    "Qualifier",
    "AWS::Lambda::Function": "Architectures Code Description Environment FunctionName Handler MemorySize Role Runtime "
    "Timeout",
    "AWS::Lambda::Permission": "Action FunctionName Principal SourceAccount SourceArn",
    "AWS::Lambda::Version": "FunctionName",
    "AWS::Logs::LogGroup": "LogGroupName RetentionInDays",
    "AWS::S3::Bucket": "BucketEncryption BucketName LifecycleConfiguration PublicAccessBlockConfiguration VersioningConfiguration",
    "AWS::S3::BucketPolicy": "Bucket PolicyDocument",
    "AWS::SQS::Queue": "MessageRetentionPeriod QueueName SqsManagedSseEnabled",
}


def test_nothing_is_there_that_checkov_has_not_looked_at(template):
    """A bucket's ACL, a function's URL, another kind of resource: run checkov on it, then name it above."""
    for name, resource in template["Resources"].items():
        unchecked = resource["Properties"].keys() - CHECKED.get(resource["Type"], "").split()
        assert resource["Type"] in CHECKED and not unchecked, (name, resource["Type"], unchecked)


def test_each_role_is_for_one_service(template):
    roles = {name: r["Properties"] for name, r in template["Resources"].items() if r["Type"] == "AWS::IAM::Role"}
    for name, role in roles.items():
        [trust] = statements(role["AssumeRolePolicyDocument"])
        service = {"FunctionRole": "lambda.amazonaws.com", "RuleRole": "iot.amazonaws.com"}[name]
        assert (trust["Action"], trust["Principal"]) == ("sts:AssumeRole", {"Service": service})


def test_the_function_is_given_names_and_no_secret(template):
    """Its runtime is looked at by cfn-lint, which knows when AWS ends one."""
    variables = template["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    assert variables == {"BUCKET": {"Ref": "Bucket"}, "STACK": {"Ref": "AWS::StackName"}, "MODEL_TTL": "5"}


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


def test_the_alias_is_left_to_the_deployer(template):
    """With any other text here, the next deploy would point `live` back to version 1."""
    assert template["Resources"]["Live"] == {
        "Type": "AWS::Lambda::Alias",
        "Condition": "HasCode",
        "Properties": {
            "FunctionName": {"Ref": "Function"},
            "FunctionVersion": {"Fn::GetAtt": ["FirstVersion", "Version"]},
            "Name": "live",
        },
    }


def test_logs_end_and_dead_letters_are_encrypted(template):
    logs = [r["Properties"] for r in template["Resources"].values() if r["Type"] == "AWS::Logs::LogGroup"]
    assert logs and all(1 <= each["RetentionInDays"] <= 30 for each in logs)
    assert template["Resources"]["DeadLetters"]["Properties"]["SqsManagedSseEnabled"] is True


def test_a_failed_call_is_not_retried_when_nobody_waits_for_it(template):
    """The client gives up after 15 s. AWS's retries come after one minute and two."""
    retries = template["Resources"]["Retries"]["Properties"]
    assert (retries["MaximumRetryAttempts"], retries["MaximumEventAgeInSeconds"]) == (0, 60)
    assert retries["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}


def test_no_failure_leaves_all_alarms_green(template):
    """What the function counts is what an alarm looks at (iris_fn/src/metrics.rs)."""
    alarms = {n: r["Properties"] for n, r in template["Resources"].items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    text = (ROOT / "iris_fn/src/metrics.rs").read_text()
    counted = text.partition('NAMESPACE: &str = "')[2].partition('"')[0]
    stack, code = {"Name": "stack", "Value": {"Ref": "AWS::StackName"}}, {"Name": "code", "Value": "model_unavailable"}
    looks_at = {
        "ErrorsAlarm": ("AWS/Lambda", "Errors", [{"Name": "FunctionName", "Value": {"Ref": "Function"}}]),
        "DeadLettersAlarm": ("AWS/SQS", "ApproximateNumberOfMessagesVisible",
                             [{"Name": "QueueName", "Value": {"Fn::GetAtt": ["DeadLetters", "QueueName"]}}]),
        "NoModelAlarm": (counted, "refusals", [stack, code]),
        "RefusedModelAlarm": (counted, "models_refused", [stack]),
    }  # fmt: skip
    assert {n: (a["Namespace"], a["MetricName"], a["Dimensions"]) for n, a in alarms.items()} == looks_at
    assert all(f"| `{name}" in text for name in ("refusals", "models_refused")) and "model_unavailable" in text
    for name, alarm in alarms.items():
        assert (alarm["Threshold"], alarm["ComparisonOperator"]) == (0, "GreaterThanThreshold")
        # SQS stops reporting while letters lie there; the others are about calls, and there are none.
        assert alarm["TreatMissingData"] == ("ignore" if name == "DeadLettersAlarm" else "notBreaching"), name


def test_the_dashboard_finds_the_classes_of_any_model(template):
    """A model's classes are known only when it is published: they are searched for, by what their metrics begin with
    (iris_fn/src/metrics.rs)."""
    text = resolved(template["Resources"]["Overview"]["Properties"]["DashboardBody"])
    widgets = {each["properties"]["title"]: each["properties"] for each in json.loads(text)["widgets"]}
    [[by_class]] = widgets["Predictions by class"]["metrics"]
    namespace = (ROOT / "iris_fn/src/metrics.rs").read_text().partition('NAMESPACE: &str = "')[2].partition('"')[0]
    wanted = f"""{{{namespace},stack}} MetricName=predictions stack="iris\""""
    assert by_class["expression"] == f"SEARCH('{wanted}', 'Sum', 60)"


def test_a_device_is_bound_to_its_own_name(template):
    policy = list(statements(template["Resources"]["DevicePolicy"]))
    assert [each["Action"] for each in policy] == ["iot:Connect", "iot:Publish", "iot:Subscribe", "iot:Receive"]
    request, response = "${AWS::StackName}/request", "${AWS::StackName}/response"
    ingest = f"topic/$aws/rules/${{AWS::StackName}}_rule/{request}"  # the same request, past the broker
    places = [["client"], [f"topic/{request}", ingest], [f"topicfilter/{response}"], [f"topic/{response}"]]
    for statement, wanted in zip(policy, places, strict=True):
        resources = statement["Resource"]
        arns = resources if isinstance(resources, list) else [resources]
        for arn, place in zip(arns, wanted, strict=True):
            assert arn["Fn::Sub"].endswith(f":{place}/${{!iot:Connection.Thing.ThingName}}")
    assert policy[0]["Condition"] == {"Bool": {"iot:Connection.Thing.IsAttached": "true"}}


def test_parliament_finds_nothing_in_any_iam_policy(template):
    """It knows AWS's actions and which resources each takes, so it sees a right that could never be used."""
    policies = dict(iam_policies(template))
    assert {"FunctionRole", "RuleRole", "BucketPolicy", DEPLOYER.name, BOUNDARY.name} == policies.keys()
    for name, policy in policies.items():
        findings = parliament.analyze_policy_string(json.dumps(policy)).findings
        assert [str(each) for each in findings if not is_newer(each)] == [], name


def is_newer(finding):
    """Whether it is about an action that parliament does not know yet, and botocore does."""
    service, _, operation = finding.location.get("string", "").partition(":")
    known = Loader().list_available_services("service-2")
    return finding.issue == "UNKNOWN_ACTION" and service in known and operation in (
        Loader().load_service_model(service, "service-2")["operations"]
    )  # fmt: skip


def test_parliament_would_find_something(template):
    policy = dict(iam_policies(template))["FunctionRole"]
    policy["Statement"][0]["Action"] = "s3:GetObjekt"
    [finding] = parliament.analyze_policy_string(json.dumps(policy)).findings
    assert finding.issue == "UNKNOWN_ACTION"
