#!/bin/sh
# Everything `make test` checks, cheapest first; each line is a command you can run by itself.
set -eu
cd "$(dirname "$0")/../.."
say() { printf '\n==> %s\n' "$*"; }

say "format"
cargo fmt --all --check

say "unit, property and doc tests"
cargo test --locked --profile notebook --package iris_fn --package deploy

say "lints"
cargo clippy --locked --profile notebook --package iris_fn --package deploy --all-targets -- -D warnings

say "test tools"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r notebooks/kernel/requirements-test.txt

say "template"
.venv/bin/cfn-lint deploy/template.yaml

say "the local cloud and the notebook runner"
.venv/bin/python -m pytest -q -p no:cacheprovider deploy/tests notebooks/kernel
