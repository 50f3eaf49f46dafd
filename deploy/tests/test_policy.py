"""Whether the printed policy and the boundary keep a person within one stack: both are evaluated here, call by call.

AWS's own rules
(https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic_policy-eval-denyallow.html): an
explicit denial wins, and without an allowance nothing is allowed; a boundary must allow it, too. What a policy says in
a way that this evaluation does not know, fails it. test_rights.py tries the same on the local cloud, and parliament
(test_template.py) knows which actions and resources there are.
"""

import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from test_template import ROOT, TEMPLATE, as_list, resolved, statements, template  # noqa: F401

ACCOUNT, REGION, STACK = "123456789012", "eu-west-1", "iris"
IAM, HERE = f"arn:aws:iam::{ACCOUNT}", f"{REGION}:{ACCOUNT}"
BOUNDARY, ADMINISTRATOR = f"{IAM}:policy/iris-workshop-boundary", "arn:aws:iam::aws:policy/AdministratorAccess"
OWN, RULE = f"{IAM}:role/{STACK}-fn-{REGION}", f"{IAM}:role/{STACK}-rule-{REGION}"
THEIRS, ADMIN = f"{IAM}:role/iris2-fn-{REGION}", f"{IAM}:role/admin"
FUNCTION, FOREIGN = (f"arn:aws:lambda:{HERE}:function:{name}" for name in (f"{STACK}-fn", "iris2-fn"))
WITHIN = {"iam:PermissionsBoundary": BOUNDARY}


def filled(name, stack=STACK, account=ACCOUNT, region=REGION):
    """A policy of deploy/ with these names in it."""
    text = (ROOT / "deploy" / name).read_text()
    for key, value in {"<STACK>": stack, "<ACCOUNT>": account, "<REGION>": region}.items():
        text = text.replace(key, value)
    assert not re.search(r"<[A-Z]+>", text)
    return json.loads(text)


# --- the evaluation ---------------------------------------------------------


def matches(pattern, text):
    """IAM's wildcards, * and ?."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text, re.S) is not None


def with_variables(text, context):
    """The text with the call's values in it; None where the call has no such value, and so nothing matches."""
    names = re.findall(r"\$\{([^}]+)\}", text)
    if any(name not in context for name in names):
        return None
    for name in names:
        text = text.replace(f"${{{name}}}", context[name])
    return text


OPERATORS = {
    "StringEquals": str.__eq__, "ArnEquals": lambda value, pattern: matches(pattern, value),
    "ArnLike": lambda value, pattern: matches(pattern, value),
}  # fmt: skip


def is_met(condition, context):
    """A key that the call does not have meets nothing."""
    for operator, keys in condition.items():
        for key, wanted in keys.items():
            wanted = [with_variables(each, context) for each in as_list(wanted)]
            if not any(key in context and each is not None and OPERATORS[operator](context[key], each) for each in wanted):
                return False
    return True


def says(statement, action, resource, context):
    assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
    resources = [with_variables(each, context) for each in as_list(statement["Resource"])]
    return (
        any(matches(each.lower(), action.lower()) for each in as_list(statement["Action"]))
        and any(each is not None and matches(each, resource) for each in resources)
        and is_met(statement.get("Condition", {}), context)
    )


def allows(policy, action, resource, context=None):
    """Whether it allows a call; `context` holds the call's values, by condition key."""
    said = {each["Effect"] for each in policy["Statement"] if says(each, action, resource, context or {})}
    assert said <= {"Allow", "Deny"}
    return said == {"Allow"}


# --- a person who deploys ---------------------------------------------------

POLICY = filled("deployer-policy.json")

# (action, resource, the call's values), what follows if it were allowed.
ESCALATIONS = {
    "give one's own role a policy, while it has no boundary": ("iam:PutRolePolicy", OWN, {}),
    "give it a policy, while it has another boundary": ("iam:PutRolePolicy", OWN, {"iam:PermissionsBoundary": ADMINISTRATOR}),
    "give another stack's role a policy": ("iam:PutRolePolicy", THEIRS, WITHIN),
    "give an administrator's role a policy": ("iam:PutRolePolicy", ADMIN, WITHIN),
    "attach a managed policy to one's own role": ("iam:AttachRolePolicy", OWN, {**WITHIN, "iam:PolicyARN": ADMINISTRATOR}),
    "make a role without a boundary": ("iam:CreateRole", OWN, {}),
    "make a role with a boundary that allows all": ("iam:CreateRole", OWN, {"iam:PermissionsBoundary": ADMINISTRATOR}),
    "make a role with a boundary of one's own": ("iam:CreateRole", OWN, {"iam:PermissionsBoundary": f"{BOUNDARY}2"}),
    "make a role of another name": ("iam:CreateRole", f"{IAM}:role/mine", WITHIN),
    "swap a role's trust policy": ("iam:UpdateAssumeRolePolicy", OWN, {}),
    "detach the boundary": ("iam:DeleteRolePermissionsBoundary", OWN, WITHIN),
    "put another boundary in its place": ("iam:PutRolePermissionsBoundary", OWN, {"iam:PermissionsBoundary": ADMINISTRATOR}),
    "make a new version of the boundary": ("iam:CreatePolicyVersion", BOUNDARY, {}),
    "go back to an older version of the boundary": ("iam:SetDefaultPolicyVersion", BOUNDARY, {}),
    "delete a version of the boundary": ("iam:DeletePolicyVersion", BOUNDARY, {}),
    "delete the boundary": ("iam:DeletePolicy", BOUNDARY, {}),
    "make the boundary before its owner does": ("iam:CreatePolicy", BOUNDARY, {}),
    "tag another's policy as the workshop's": ("iam:TagPolicy", BOUNDARY, {"aws:RequestTag/project": "iris-workshop"}),
    "hand an administrator's role to a function": ("iam:PassRole", ADMIN, {"iam:PassedToService": "lambda.amazonaws.com"}),
    "hand another stack's role to a function": ("iam:PassRole", THEIRS, {"iam:PassedToService": "lambda.amazonaws.com"}),
    "hand an administrator's role to a rule": ("iam:PassRole", ADMIN, {"iam:PassedToService": "iot.amazonaws.com"}),
    "hand an administrator's role to CloudFormation": (
        "iam:PassRole", ADMIN, {"iam:PassedToService": "cloudformation.amazonaws.com"},
    ),
    "hand one's own role to CloudFormation": ("iam:PassRole", OWN, {"iam:PassedToService": "cloudformation.amazonaws.com"}),
    "hand one's own role to a machine": ("iam:PassRole", OWN, {"iam:PassedToService": "ec2.amazonaws.com"}),
    "hand one's own role to a schedule": ("iam:PassRole", OWN, {"iam:PassedToService": "scheduler.amazonaws.com"}),
    "take an administrator's role": ("sts:AssumeRole", ADMIN, {}),
    "change the code of another function": ("lambda:UpdateFunctionCode", FOREIGN, {}),
    "put a layer into another function": ("lambda:UpdateFunctionConfiguration", FOREIGN, {}),
    "publish a layer that others use": ("lambda:PublishLayerVersion", f"arn:aws:lambda:{HERE}:layer:common", {}),
    "make a function of another name": ("lambda:CreateFunction", f"arn:aws:lambda:{HERE}:function:mine", {}),
    "have another function called": ("lambda:AddPermission", FOREIGN, {}),
    "feed a function from any queue": ("lambda:CreateEventSourceMapping", f"arn:aws:lambda:{HERE}:event-source-mapping:x", {}),
    "open one's own function to the web": ("lambda:CreateFunctionUrlConfig", FUNCTION, {}),
    "change another's stack": ("cloudformation:CreateChangeSet", f"arn:aws:cloudformation:{HERE}:stack/iris2/x", {}),
    "delete another's stack": ("cloudformation:DeleteStack", f"arn:aws:cloudformation:{HERE}:stack/iris2/x", {}),
    "make stacks in many accounts": ("cloudformation:CreateStackSet", f"arn:aws:cloudformation:{HERE}:stackset/x:*", {}),
    "change another's rule": ("iot:ReplaceTopicRule", f"arn:aws:iot:{HERE}:rule/iris2_rule", {}),
    "let devices take a role": ("iot:CreateRoleAlias", f"arn:aws:iot:{HERE}:rolealias/x", {}),
    "change another's device policy": ("iot:CreatePolicyVersion", f"arn:aws:iot:{HERE}:policy/iris2-device", {}),
    "replace another's model": ("s3:PutObject", f"arn:aws:s3:::iris2-{ACCOUNT}-{REGION}/models/current.json", {}),
    "replace another's code": ("s3:PutObject", f"arn:aws:s3:::iris2-{ACCOUNT}-{REGION}/code/x.zip", {}),
    "make a user": ("iam:CreateUser", f"{IAM}:user/mallory", {}),
    "make keys for another": ("iam:CreateAccessKey", f"{IAM}:user/owner", {}),
    "make keys for oneself": ("iam:CreateAccessKey", f"{IAM}:user/anna", {}),
    "set another's password": ("iam:UpdateLoginProfile", f"{IAM}:user/owner", {}),
    "give oneself a policy": ("iam:PutUserPolicy", f"{IAM}:user/anna", {}),
    "attach a policy to oneself": ("iam:AttachUserPolicy", f"{IAM}:user/anna", {"iam:PolicyARN": ADMINISTRATOR}),
    "join a group": ("iam:AddUserToGroup", f"{IAM}:group/administrators", {}),
    "give one's group a policy": ("iam:PutGroupPolicy", f"{IAM}:group/class", {}),
    "put a role into a machine": ("iam:AddRoleToInstanceProfile", f"{IAM}:instance-profile/x", {}),
}  # fmt: skip

# What a deploy does with the same actions: without it, the above would prove nothing.
NEEDED = {
    "make a role within the boundary": ("iam:CreateRole", OWN, WITHIN),
    "give it its policy": ("iam:PutRolePolicy", OWN, WITHIN),
    "give an older stack's role the boundary": ("iam:PutRolePermissionsBoundary", RULE, WITHIN),
    "delete a role's policy": ("iam:DeleteRolePolicy", RULE, {}),
    "hand it to the function": ("iam:PassRole", OWN, {"iam:PassedToService": "lambda.amazonaws.com"}),
    "hand it to the rule": ("iam:PassRole", RULE, {"iam:PassedToService": "iot.amazonaws.com"}),
    "change the code": ("lambda:UpdateFunctionCode", FUNCTION, {}),
    "call a version": ("lambda:InvokeFunction", f"{FUNCTION}:7", {}),
    "look whether the boundary is there": ("iam:GetPolicy", BOUNDARY, {}),
    "change the stack": ("cloudformation:CreateChangeSet", f"arn:aws:cloudformation:{HERE}:stack/{STACK}/x", {}),
    "publish a model": ("s3:PutObject", f"arn:aws:s3:::{STACK}-{ACCOUNT}-{REGION}/models/current.json", {}),
}


@pytest.mark.parametrize("what", ESCALATIONS)
def test_the_policy_does_not_let_a_person(what):
    assert not allows(POLICY, *ESCALATIONS[what])


@pytest.mark.parametrize("what", NEEDED)
def test_the_policy_lets_a_person(what):
    assert allows(POLICY, *NEEDED[what])


def test_without_its_conditions_the_policy_would_let_a_person_out():
    """The evaluation sees a hole where there is one."""
    open_policy = {"Statement": [{**each, "Condition": {}} for each in POLICY["Statement"]]}
    out = {what for what, call in ESCALATIONS.items() if allows(open_policy, *call)}
    assert {"give one's own role a policy, while it has no boundary", "make a role without a boundary"} < out
    assert {"put another boundary in its place", "hand one's own role to CloudFormation"} < out
    assert len(out) == 9, out


# --- the roles, within the boundary -----------------------------------------

LIMIT = filled("boundary-policy.json")


def within(action, resource, role=OWN, tag=STACK):
    """Whether a role may do this whose own policy allows everything."""
    context = {"aws:PrincipalArn": role, **({"aws:PrincipalTag/stack": tag} if tag else {})}
    return allows(LIMIT, action, resource, context)


def things(stack, account=ACCOUNT):
    """What a stack's roles are for."""
    here = f"{REGION}:{account}"
    return {
        "read its models": ("s3:GetObject", f"arn:aws:s3:::{stack}-{account}-{REGION}/models/current.json"),
        "answer its devices": ("iot:Publish", f"arn:aws:iot:{here}:topic/{stack}/response/{stack}-lily"),
        "write its log": ("logs:PutLogEvents", f"arn:aws:logs:{here}:log-group:/aws/lambda/{stack}-fn:log-stream:x"),
        "keep its dead letters": ("sqs:SendMessage", f"arn:aws:sqs:{here}:{stack}-dead-letters"),
    }


def test_a_role_may_do_for_its_own_stack_what_it_is_for():
    for action, resource in things(STACK).values():
        assert within(action, resource)


@pytest.mark.parametrize("tag", [STACK, "iris2", f"{STACK}-fn", "", None])
def test_whatever_its_tag_says_a_role_may_do_nothing_for_another_stack(tag):
    for what, (action, resource) in [*things("iris2").items(), *things(STACK, "999999999999").items()]:
        assert not within(action, resource, tag=tag), what


def test_a_role_of_a_name_that_no_stack_has_may_do_nothing():
    for action, resource in things("iris2").values():
        assert within(action, resource, role=THEIRS, tag="iris2")
        assert not within(action, resource, role=f"{IAM}:role/iris2", tag="iris2")
        assert not within(action, resource, role=f"{IAM}:role/myiris2-fn", tag="iris2")


@pytest.mark.parametrize("what", ESCALATIONS)
def test_no_role_within_the_boundary_can(what):
    action, resource, _ = ESCALATIONS[what]
    assert not within(action, resource)


def test_no_role_within_the_boundary_can_do_what_a_person_can():
    """But read the models."""
    both = set()
    for statement in POLICY["Statement"]:
        for resource in as_list(statement["Resource"]):
            named = resource.replace("*", f"models/{STACK}-x")
            both |= {action for action in as_list(statement["Action"]) if within(action, named)}
    assert both == {"s3:GetObject"}


def test_the_templates_roles_are_within_the_boundary_and_use_all_of_it(template):  # noqa: F811
    roles = [each["Properties"] for each in template["Resources"].values() if each["Type"] == "AWS::IAM::Role"]
    assert len(roles) == 2
    used = set()
    for role in map(resolved, roles):
        assert role["PermissionsBoundary"] == BOUNDARY
        assert role["Tags"] == [{"Key": "stack", "Value": STACK}]
        for statement in statements(role["Policies"]):
            for action in as_list(statement["Action"]):
                used.add(action)
                assert within(action, statement["Resource"].replace("*", "x"), f"{IAM}:role/{role['RoleName']}"), action
    assert used == {action for each in LIMIT["Statement"] for action in as_list(each["Action"])}


# --- what CloudFormation's handlers ask for ---------------------------------

# What of the policy is for the handlers of each type. Budgets have no published ones: what the API's reference names.
FOR_HANDLERS = {
    "AWS::Budgets::Budget": "budgets: ListTagsForResource ModifyBudget TagResource ViewBudget",
    "AWS::CloudWatch::Alarm": (
        "cloudwatch: DeleteAlarms DescribeAlarms ListTagsForResource PutMetricAlarm TagResource"
    ),
    "AWS::CloudWatch::Dashboard": (
        "cloudwatch: DeleteDashboards GetDashboard ListTagsForResource PutDashboard TagResource"
    ),
    "AWS::Events::Rule": (
        "events: DeleteRule DescribeRule ListTagsForResource ListTargetsByRule PutRule PutTargets "
        "RemoveTargets TagResource"
    ),
    "AWS::IAM::Role": (
        "iam: CreateRole DeleteRole DeleteRolePolicy GetRole GetRolePolicy ListAttachedRolePolicies "
        "ListRolePolicies PutRolePermissionsBoundary PutRolePolicy TagRole UntagRole UpdateRole"
    ),
    "AWS::IoT::Policy": (
        "iot: CreatePolicy CreatePolicyVersion DeletePolicy DeletePolicyVersion GetPolicy ListPolicyVersions "
        "ListTagsForResource SetDefaultPolicyVersion TagResource"
    ),
    "AWS::IoT::TopicRule": (
        "iam: PassRole iot: CreateTopicRule DeleteTopicRule GetTopicRule ListTagsForResource ReplaceTopicRule "
        "TagResource"
    ),
    "AWS::Lambda::Alias": (
        "lambda: CreateAlias DeleteAlias GetAlias GetProvisionedConcurrencyConfig UpdateAlias"
    ),
    "AWS::Lambda::EventInvokeConfig": (
        "lambda: DeleteFunctionEventInvokeConfig GetFunctionEventInvokeConfig PutFunctionEventInvokeConfig "
        "UpdateFunctionEventInvokeConfig"
    ),
    "AWS::Lambda::Function": (
        "iam: PassRole lambda: CreateFunction DeleteFunction GetFunction GetFunctionCodeSigningConfig "
        "GetFunctionRecursionConfig GetFunctionScalingConfig GetRuntimeManagementConfig PublishVersion "
        "TagResource UpdateFunctionCode UpdateFunctionConfiguration s3: GetObject"
    ),
    "AWS::Lambda::Permission": "lambda: AddPermission GetPolicy RemovePermission",
    "AWS::Lambda::Version": (
        "lambda: DeleteFunction GetFunctionConfiguration GetFunctionScalingConfig "
        "GetProvisionedConcurrencyConfig GetRuntimeManagementConfig ListVersionsByFunction PublishVersion"
    ),
    "AWS::Logs::LogGroup": (
        "logs: CreateLogGroup DeleteLogGroup DescribeIndexPolicies DescribeLogGroups DescribeResourcePolicies "
        "GetDataProtectionPolicy ListTagsForResource PutRetentionPolicy TagResource"
    ),
    "AWS::S3::Bucket": (
        "s3: CreateBucket DeleteBucket DeleteObject GetBucketPublicAccessBlock GetBucketTagging "
        "GetBucketVersioning GetEncryptionConfiguration GetLifecycleConfiguration ListBucket "
        "PutBucketPublicAccessBlock PutBucketTagging PutBucketVersioning PutEncryptionConfiguration "
        "PutLifecycleConfiguration"
    ),
    "AWS::S3::BucketPolicy": "s3: DeleteBucketPolicy GetBucketPolicy PutBucketPolicy",
    "AWS::SQS::Queue": (
        "sqs: CreateQueue DeleteQueue GetQueueAttributes GetQueueUrl ListQueueTags SetQueueAttributes "
        "TagQueue"
    ),
}

# Of what a handler lists, the policy gives what follows from the template. This is not, and why.
NOT_GIVEN = {
    "the template names no key, so AWS's own are used": "kms:*",
    "no network and no file system of one's own": "ec2:* elasticfilesystem:* s3files:*",
    "no provisioned or reserved concurrency, scaling, layer, signature, recursion or runtime setting": (
        "lambda:*ProvisionedConcurrencyConfig lambda:*FunctionConcurrency lambda:PutFunctionScalingConfig "
        "lambda:PassCapacityProvider lambda:GetLayerVersion lambda:*CodeSigningConfig lambda:PutFunctionRecursionConfig "
        "lambda:PutRuntimeManagementConfig"
    ),
    "the alias is moved by the deployer, not by CodeDeploy": "codedeploy:*",
    "the code is named by its key, without a version": "s3:GetObjectVersion",
    "a role's boundary and trust stay, and it has no managed policy and no description": (
        "iam:DeleteRolePermissionsBoundary iam:UpdateAssumeRolePolicy iam:AttachRolePolicy iam:DetachRolePolicy "
        "iam:UpdateRoleDescription"
    ),
    "tags are set and never taken away": (
        "cloudwatch:UntagResource events:UntagResource iot:UntagResource lambda:UntagResource logs:UntagResource "
        "sqs:UntagQueue s3:UntagResource"
    ),
    "the log group has a retention and nothing else, and keeps it": (
        "logs:*DataProtectionPolicy logs:CreateLogDelivery s3:REST.PUT.OBJECT firehose:* logs:*ResourcePolicy "
        "logs:*IndexPolicy logs:PutBearerTokenAuthentication logs:*KmsKey logs:DeleteRetentionPolicy "
        "logs:PutLogGroupDeletionProtection"
    ),
    "the bucket has versions, encryption, a lifecycle, tags and no public access, and nothing else is set or taken away": (
        "s3tables:* s3:*Abac s3:*Analytics* s3:*BucketC* s3:*Inventory* s3:*Metrics* s3:*Notification s3:*Replication* "
        "s3:*Website s3:*Accelerate* s3:*Acl s3:*ObjectLock* s3:*Logging s3:*OwnershipControls s3:*IntelligentTiering* "
        "s3:*Metadata* s3:TagResource s3:ListTagsForResource s3:DeleteBucketEncryption s3:DeleteBucketLifecycle"
    ),
}


def used_by_handlers():
    """{type: {action}}"""
    used = {}
    for kind, text in FOR_HANDLERS.items():
        for word in text.split():
            if word.endswith(":"):
                service = word
            else:
                used.setdefault(kind, set()).add(service + word)
    return used


def test_the_policy_gives_what_cloudformations_handlers_ask_for(template):  # noqa: F811
    """AWS publishes for each type what its handlers call: `aws cloudformation describe-type --type RESOURCE --type-name
    AWS::IAM::Role --query Schema --output text > aws-iam-role.json`. SCHEMAS names a folder with these files."""
    if not (folder := os.environ.get("SCHEMAS")):
        pytest.skip("SCHEMAS names no folder with CloudFormation's resource schemas (see this test's text)")
    given = {action.lower() for each in POLICY["Statement"] for action in as_list(each["Action"])}
    asked = {}
    for kind in sorted({each["Type"] for each in template["Resources"].values()}):
        handlers = json.loads((Path(folder) / f"{kind.lower().replace('::', '-')}.json").read_text()).get("handlers", {})
        for handler in handlers.keys() - {"list"}:
            for action in handlers[handler]["permissions"]:
                asked.setdefault(action, set()).add(kind)
    reasons = [pattern for patterns in NOT_GIVEN.values() for pattern in patterns.split()]
    missing = {action: kinds for action, kinds in asked.items() if action.lower() not in given}
    assert len(asked) > 100
    assert {a: kinds for a, kinds in missing.items() if not any(fnmatchcase(a.lower(), p.lower()) for p in reasons)} == {}
    assert [pattern for pattern in reasons if not any(fnmatchcase(a.lower(), pattern.lower()) for a in missing)] == []
    for kind, actions in used_by_handlers().items():
        assert kind == "AWS::Budgets::Budget" or not {each for each in actions if kind not in asked.get(each, ())}, kind
