#!/bin/sh
# What `make check` checks (for every save), `make test` (all that must hold on a landing) and `make test-all` (the same
# kinds at full size, every night). Cheapest first; each line is a command that you can run by itself.
set -eu
cd "$(dirname "$0")/../.."
size=$1
say() { printf '\n==> %s\n' "$*"; }

say "format"
cargo fmt --all --check
cargo fmt --manifest-path iris_fn/fuzz/Cargo.toml --check

say "lints, unit, property and doc tests"
(
  # One build for both, which shares every dependency with the notebooks' library: Clippy takes the compiler's place for
  # our own crates. `workshop` is named for its features only; its library must stay the one that the kernels load.
  . target/setup/cargo.env
  export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings
  cargo test --locked --profile notebook --package workshop --package iris_fn --package deploy --package client
)
test "$size" != check || exit 0

say "template"
.venv/bin/cfn-lint deploy/template.yaml

say "the live page, the local cloud, the notebook runner, the whole path, faults, and the notebooks themselves"
test "$size" = test || export FULL=1
# Whole files side by side, each with a cloud of its own.
.venv/bin/python -m pytest -p no:cacheprovider --basetemp target/pytest --durations 10 \
  --numprocesses 3 --dist loadfile client/tests deploy/tests examples notebooks/kernel teach
test "$size" != test || exit 0

say "checkov, lints of all crates, a long soak, fuzzing"
test -x target/tools/checkov/bin/pip || .venv/bin/python -m venv target/tools/checkov
target/tools/checkov/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/tests/requirements-checkov.txt
target/tools/checkov/bin/checkov --config-file deploy/tests/checkov.yaml
cargo clippy --locked --workspace --all-targets -- -D warnings
make faults CASE=steady SOAK=1
make fuzz
