#!/bin/sh
# Everything `make test` checks, cheapest first; each line is a command you can run by itself.
set -eu
cd "$(dirname "$0")/../.."
say() { printf '\n==> %s\n' "$*"; }

say "format"
cargo fmt --all --check
cargo fmt --manifest-path iris_fn/fuzz/Cargo.toml --check

say "unit, property and doc tests"
cargo test --locked --package iris_fn --package deploy --package client

say "lints"
cargo clippy --locked --workspace --all-targets -- -D warnings

say "template"
.venv/bin/cfn-lint deploy/template.yaml
test -x target/tools/checkov/bin/pip || .venv/bin/python -m venv target/tools/checkov
target/tools/checkov/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/tests/requirements-checkov.txt
target/tools/checkov/bin/checkov --config-file deploy/tests/checkov.yaml

say "the function is built and zipped"
make build

say "the live page, the local cloud, the notebook runner, the whole path, and the notebooks themselves"
.venv/bin/python -m pytest -p no:cacheprovider client/tests deploy/tests notebooks/kernel

say "network, broker, function and store break, and no question is lost"
.venv/bin/python client/faults.py
