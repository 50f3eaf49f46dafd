"""Which rights the recorded calls need, and which of these the printed policy does not give: for the deployer's calls
(test_rights.py) and for the notebooks' (notebooks/kernel/test_notebooks.py)."""

from clients import ACCOUNT, REGION
from test_policy import allows, filled

# IAM's name of a right, where it is not the operation's; CopyObject reads and writes, and the tags of what is made
# are a right of their own (Service Authorization Reference).
RIGHTS = {
    "cloudformation:CreateChangeSet": "cloudformation:CreateChangeSet cloudformation:TagResource",
    "lambda:Invoke": "lambda:InvokeFunction", "s3:CopyObject": "s3:GetObject s3:PutObject",
    "s3:DeleteObjects": "s3:DeleteObject s3:DeleteObjectVersion", "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListBuckets": "s3:ListAllMyBuckets", "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:ListObjectsV2": "s3:ListBucket", "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
}  # fmt: skip
# Rights that a policy cannot narrow to a resource, by the same reference.
ON_ALL = {
    "iot:AttachThingPrincipal", "iot:CreateKeysAndCertificate", "iot:DescribeEndpoint", "iot:DetachThingPrincipal",
    "iot:ListAttachedPolicies", "iot:ListThingPrincipals", "iot:ListThings", "lambda:GetAccountSettings",
}  # fmt: skip


def rights(call, own):
    """(right, resource) of each right that a call needs; `own` is the stack of a change set that names none."""
    operation, given = f"{call.service}:{call.operation}", call.arguments
    if operation == "sts:GetCallerIdentity":  # everybody may
        return []
    names = RIGHTS.get(operation, operation).split()
    if operation == "s3:GetObject" and "VersionId" in given:
        names = ["s3:GetObjectVersion"]
    here = f"{REGION}:{ACCOUNT}"
    if call.service == "s3":
        keys = [each["Key"] for each in given.get("Delete", {}).get("Objects", [])] or [given.get("Key")]
        resources = [f"arn:aws:s3:::{given['Bucket']}" + (f"/{key}" if key else "") for key in keys] if "Bucket" in given else ["*"]
    elif call.service == "cloudformation":
        # A change set is named by its id alone where it is looked at before it is deleted.
        stack = given.get("StackName", own if "ChangeSetName" in given else "*")
        named = stack if ":" in stack or stack == "*" else f"arn:aws:cloudformation:{here}:stack/{stack}/x"
        resources = [named]
    elif call.service == "lambda":
        function = ":".join(given[each] for each in ("FunctionName", "Qualifier") if each in given)
        resources = [f"arn:aws:lambda:{here}:function:{function}"]
    elif call.service == "iot":
        kinds = {"thingName": "thing", "policyName": "policy", "certificateId": "cert"}
        resources = [f"arn:aws:iot:{here}:{kind}/{given[name]}" for name, kind in kinds.items() if name in given]
    elif call.service == "sqs":
        resources = [f"arn:aws:sqs:{here}:{given.get('QueueName') or given['QueueUrl'].rpartition('/')[2]}"]
    elif call.service == "logs":
        resources = [f"arn:aws:logs:{here}:log-group:{given['logGroupName']}:*"]
    else:
        resources = [given.get("PolicyArn") or given.get("PolicySourceArn") or f"arn:aws:iam::{ACCOUNT}:policy/{given['PolicyName']}"]
    return [(name, "*" if name in ON_ALL else resource) for name in names for resource in resources or ["*"]]


def needed_and_missing(calls, stacks):
    """({(right, resource)} that the calls need, those of them that no policy of the stacks gives)."""
    policies = [filled("deployer-policy.json", stack, ACCOUNT, REGION) for stack in stacks]
    needed = {each for call in calls for each in rights(call, stacks[0])}
    return needed, {each for each in needed if not any(allows(policy, *each) for policy in policies)}


def problems(calls):
    """{(service, operation, how it differs from AWS's model)}"""
    return {(each.service, each.operation, each.problem) for each in calls if each.problem}
