#!/bin/sh
# What `make bench` runs, with its settings in the environment; each line is a command you can run by itself.
set -eu
cd "$(dirname "$0")/.."
quiet=--quiet
[ ! -t 2 ] || quiet=
build() { cargo build $quiet --locked --release "$@"; }

# The function as it goes to AWS, whatever the local cloud gets.
build --package iris_fn --bin bootstrap
build --package bench --no-default-features --bin empty --bin echo
build --package bench --bin hot --bin peers --bin round_trip
target/notebook/deploy package target/release/bootstrap target/bench/iris_fn.zip
.venv/bin/python bench/peers/prepare.py target/bench/peers

target/release/hot --bench
# OPENBLAS_*: some machines set them for older versions, and they slow a current NumPy down.
env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE PYTHON="$(readlink -f .venv/bin/python)" target/release/peers || missed=$?
.venv/bin/python bench/round_trip.py
exit "${missed:-0}"
