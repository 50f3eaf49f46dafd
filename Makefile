# The one door: every task is a target, and `make` alone prints them all.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
ifeq ($(wildcard notebooks/kernel/setup.py),)
$(error This Makefile works in its own folder: make -C "$(patsubst %/Makefile,%,$(strip $(MAKEFILE_LIST)))" $(MAKECMDGOALS))
endif

# ---- settings: on the command line (make deploy STACK=anna) or in the environment --------------------
STACK          ?= iris
TARGET         ?= local
NAME           ?= lily
# What `make predict` asks about: one row, in the order of the model's features, or a file of them (- for standard input).
ROW            ?=
CSV            ?=
# The file that `make publish` publishes.
MODEL          ?=
RATE           ?=
NB             ?=
# What `make lab` hands on to JupyterLab, such as --no-browser.
LAB_ARGS       ?=
# The device that notebook 4 asks with. A client id can be connected only once, so headless runs use another.
DEVICE         ?= notebook
PYTHON         ?= python3
# Found before .venv comes into PATH: what makes .venv anew cannot be a part of it.
override PYTHON := $(or $(shell command -v "$(PYTHON)"),$(PYTHON))
ARCH           ?= host
CELL_TIMEOUT   ?= 900
RUNS           ?= 1000000
LOCAL_DIR      ?= $(CURDIR)/target/local
# zsh and dash leave the ~ of CSV=~/file as it is.
$(foreach each,CSV MODEL NB EVCXR LOCAL_DIR,$(if $(filter ~/%,$($(each))),\
  $(eval override $(each) := $(patsubst ~/%,$(HOME)/%,$($(each))))$(eval export $(each))))
# Without a word about them, the ports that the local cloud had last.
last = $(shell sed -n 's/.*"$1": *\([0-9]*\).*/\1/p' "$(LOCAL_DIR)/pid" 2>&-)
ifeq ($(GATEWAY_PORT),)
GATEWAY_PORT   := $(or $(call last,GATEWAY_PORT),4566)
endif
ifeq ($(IOT_MTLS_PORT),)
IOT_MTLS_PORT  := $(or $(call last,IOT_MTLS_PORT),8883)
endif
export STACK TARGET DEVICE NAME NB ARCH GATEWAY_PORT IOT_MTLS_PORT CELL_TIMEOUT LOCAL_DIR
# The project's own Python first: `cargo lambda`, `zig` and `jupyter` come from .venv.
# Then the Rust that a bundle has brought along.
export PATH := $(CURDIR)/.venv/bin:$(patsubst %,$(CURDIR)/%:,$(wildcard target/rust/bin))$(PATH)

NOTEBOOKS   := $(sort $(wildcard notebooks/0*.ipynb))
WALKTHROUGH := $(sort $(wildcard notebooks/0[1-4]_*.ipynb))
DEPLOY      := target/notebook/deploy
CLIENT      := target/notebook/client
# Where the stack's devices lie: for each target, account and region in another place.
DIR         = DEVICES_DIR="$$($(DEPLOY) device-dir)"
ZIP         := target/lambda/$(TARGET)/iris_fn.zip
SETUP       := "$(PYTHON)" notebooks/kernel/setup.py
# What your shell says about other projects' builds changes none of ours (setup.py does the same for Cargo's files).
# Mirrors, proxies, certificates and CARGO_BUILD_JOBS stay.
unexport $(filter-out CARGO_BUILD_JOBS,$(filter CARGO_BUILD_% CARGO_TARGET_% CARGO_PROFILE_% CARGO_UNSTABLE_%,$(.VARIABLES)))
unexport CARGO_ENCODED_RUSTFLAGS CARGO_INCREMENTAL RUSTFLAGS RUSTDOCFLAGS RUSTC RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER
unexport CFLAGS CXXFLAGS CPPFLAGS LDFLAGS PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT
# What comes from a bundle looks for Rust's standard library where the other machine had it.
ifneq ($(wildcard target/bundle),)
export LD_LIBRARY_PATH := $(or $(addprefix $(CURDIR)/,$(wildcard target/rust/lib/rustlib/*/lib)),$(shell rustc --print target-libdir))
endif
# Where the home directory cannot be written, what would be kept there is kept here.
ifneq ($(shell test -w "$$HOME/" && echo yes),yes)
export XDG_CACHE_HOME   ?= $(CURDIR)/target/home/cache
export CARGO_HOME       ?= $(CURDIR)/target/home/cargo
export JUPYTER_DATA_DIR ?= $(CURDIR)/target/home/jupyter
export JUPYTER_CONFIG_DIR ?= $(CURDIR)/target/home/jupyter
endif

comma := ,
union = $(subst $(subst ,, ),$(comma),$(sort $1))

ifeq ($(TARGET),local)
# Nothing of your real AWS settings reaches the local cloud, or the other way round: no endpoint, profile or certificate.
unexport $(filter AWS_%,$(.VARIABLES))
# All that differs between the laptop and AWS. `test` is the local cloud's root user: any secret will do.
export AWS_ENDPOINT_URL      := http://127.0.0.1:$(GATEWAY_PORT)
export AWS_ACCESS_KEY_ID     := test
export AWS_SECRET_ACCESS_KEY := test
export AWS_REGION            := us-east-1
export AWS_CONFIG_FILE             := /dev/null
export AWS_SHARED_CREDENTIALS_FILE := /dev/null
export NO_PROXY := $(call union,127.0.0.1 localhost $(subst $(comma), ,$(NO_PROXY) $(no_proxy)))
export no_proxy := $(NO_PROXY)
CLOUD     := setup cloud
# Built with the notebooks' settings, to share their dependencies: minutes sooner there, and slower than what AWS gets.
FUNCTION  := $(SETUP) function
BESIDE    := $(FUNCTION)
BOOTSTRAP := target/notebook/bootstrap
else ifeq ($(TARGET),aws)
CLOUD     := setup
# A fifth cheaper a second than x86_64 (data/prices.json), and built by the same cross-compiler.
ifeq ($(ARCH),host)
override ARCH := arm64
endif
FUNCTION  := $(SETUP) lambda
BESIDE    := $(SETUP)
BOOTSTRAP := target/lambda/bootstrap/bootstrap
else
$(error TARGET is '$(TARGET)': it is local or aws)
endif

demo run notebooks: export DEVICE := headless

##@ Start here
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  \033[36m%-10s\033[0m %s\n", $$1, $$2}' Makefile
	@echo; echo "Settings: STACK=$(STACK) TARGET=$(TARGET) (local or aws) NAME=$(NAME) NB=notebooks/01_train.ipynb"

# Notebook 1 starts as soon as it can, and what the later ones need is built beside it. A cell that needs it waits.
demo: first $(filter cloud,$(CLOUD)) ## The whole walkthrough: from the data to 150 live predictions
	@$(BESIDE) & .venv/bin/python notebooks/kernel/run.py --summary target/demo.json $(WALKTHROUGH) \
	  || { code=$$?; kill $$! 2>&-; exit $$code; }
	@echo "Next: make lab opens the notebooks, make status says what is deployed, make stop ends the local cloud."

lab: first $(filter cloud,$(CLOUD)) ## Open the notebooks in JupyterLab: LAB_ARGS='--no-browser' for a remote machine
	@$(BESIDE) & exec .venv/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks/01_train.ipynb $(LAB_ARGS)

setup: ## Install everything, once (every target that needs it runs it)
	@$(SETUP)

# Only what a notebook needs to start.
first:
	@$(SETUP) notebooks

##@ Notebooks
run: first $(CLOUD) ## Run one notebook without a browser: make run NB=notebooks/01_train.ipynb
	@test -n "$$NB" || { echo "Which notebook? make run NB=notebooks/01_train.ipynb"; exit 2; }
	@.venv/bin/python notebooks/kernel/run.py "$$NB"

notebooks: $(CLOUD) ## Run all notebooks and keep their outputs in them
	@.venv/bin/python notebooks/kernel/run.py --in-place $(NOTEBOOKS)

progress: ## List which exercises are solved
	@"$(PYTHON)" notebooks/kernel/progress.py

# What Jupyter starts for each notebook: the kernel, with the settings above, in this folder. It compiles cells below
# target/, because programs from /tmp may be forbidden (noexec). RUSTC: what it asks rustc at its start goes there without
# rustup's detour. The wrappers: with the same for all that it asks, some thirty times before its first cell, Cargo remembers
# the answers. MIMALLOC_…: giving memory back and asking for it again would take part of the start.
kernel:
	@mkdir -p target/kernels; exec env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS -u MAKE_TERMOUT -u MAKE_TERMERR \
	  $(if $(realpath target/setup/rustc),RUSTC="$(realpath target/setup/rustc)") RUSTC_WRAPPER=env RUSTC_WORKSPACE_WRAPPER=env \
	  MIMALLOC_PURGE_DELAY=-1 TMPDIR="$(CURDIR)/target/kernels" $(addprefix LD_PRELOAD=$(CURDIR)/,$(wildcard target/setup/cell.so)) \
	  target/setup/evcxr_jupyter --control_file "$(CONNECTION_FILE)"

##@ The cloud
local: setup ## Start the local cloud (nothing to do when it runs)
	@.venv/bin/python deploy/local.py start

# The same for the targets that need it, silent when it runs.
cloud: first
	@.venv/bin/python deploy/local.py start --quiet

stop: ## Stop the local cloud; what is in it stays
	@! test -x .venv/bin/python || .venv/bin/python deploy/local.py stop

bucket: $(CLOUD) ## Make the stack's bucket (its first stage)
	@$(DEPLOY) bucket

publish: $(CLOUD) ## Check a model file and make it the current one: make publish MODEL=target/model.json
	@test -n "$$MODEL" || { echo "Which model? make publish MODEL=target/model.json"; exit 2; }
	@$(DEPLOY) publish "$$MODEL"

build: ## Build the function and zip it
	@$(FUNCTION)
	@$(DEPLOY) package $(BOOTSTRAP) $(ZIP)

plan: $(CLOUD) ## Print what make deploy would change, and change nothing (exit 0: nothing to do, 2: something)
	@$(DEPLOY) plan $(ZIP)

deploy: $(CLOUD) ## Deploy the built function: upload, update, test, compare, and only then put it live
	@$(DEPLOY) up $(ZIP)

versions: $(CLOUD) ## List the versions of the code and the models
	@$(DEPLOY) versions

rollback: $(CLOUD) ## Back to the version before: make rollback, or WHAT=model, or TO=3
	@$(DEPLOY) rollback

device: $(CLOUD) ## Make a device with a certificate of its own: make device NAME=lily
	@$(DEPLOY) device "$$NAME" --mosquitto

# Whatever set-up prints is not the folder.
device-dir: ## Print the folder of a device and nothing else: make -s device-dir NAME=lily
	@$(MAKE) $(CLOUD) >&2
	@$(DEPLOY) device-dir "$$NAME"

dlq: $(CLOUD) ## List the requests that failed
	@$(DEPLOY) dlq

redrive: $(CLOUD) ## Send the failed requests again; the answers go to the devices
	@$(DEPLOY) redrive

status: $(CLOUD) ## Print what is deployed
	@$(DEPLOY) status

invoke: $(CLOUD) ## Ask the deployed function about any row, or make invoke REQUEST='{"request_id": "1", …}'
	@$(DEPLOY) invoke

logs: $(CLOUD) ## Print the function's log of the last hour: make logs FOLLOW=1 goes on
	@$(DEPLOY) logs

tail: $(CLOUD) ## Print what the function logged about one request: make tail REQUEST=its-request-id
	@test -n "$$REQUEST" || { echo "Which request? make tail REQUEST=its-request-id"; exit 2; }
	@$(DEPLOY) logs --request-id "$$REQUEST"

policy: $(CLOUD) ## Print the permissions that a person needs to deploy this stack
	@$(DEPLOY) policy

boundary: $(CLOUD) ## Make the permissions boundary that the policy demands (the account's owner, once)
	@$(DEPLOY) boundary

cost: setup ## Print what the stack costs on AWS, idle, in use and forgotten
	@$(DEPLOY) cost

doctor: ## Check that everything the workshop needs is there, on this machine or with TARGET=aws in the account
	@"$(PYTHON)" notebooks/kernel/doctor.py

destroy: $(CLOUD) ## Delete everything that has the stack's name
	@$(DEPLOY) destroy

##@ Asking
predict: $(CLOUD) ## Ask about a row, ROW='5.1 3.5 1.4 0.2' in the model's order, or a file, CSV=data/iris.csv RATE=20
	@$(DEPLOY) device terminal >&2
	@set -f; $(DIR) $(CLIENT) predict $${RATE:+--rate "$$RATE"} $${CSV:+--csv "$$CSV"} -- $$ROW

load: $(CLOUD) ## Send requests at a steady rate from many devices: make load RATE=50 SECONDS=10 DEVICES=5
	@$(DEPLOY) device load --count "$${DEVICES:-5}" >&2
	@$(DIR) $(CLIENT) load

live: $(CLOUD) ## Watch a run in the browser and ask about your own row: RATE=20; ROOM=1 lets the room in
	@$(DEPLOY) device live >&2
	@$(DIR) $(CLIENT) live

##@ Teaching
schedule: ## Print what two hours and four hours hold, from the minutes of slides and notebooks
	@"$(PYTHON)" teach/schedule.py

SLIDES      := target/slides.html target/handout.html
slides: $(SLIDES) ## Make the slides and the handout: target/slides.html, target/handout.html (needs Node.js)
	@echo "target/slides.html (p: speaker's view, f: full screen), target/handout.html (one sheet of A4)"

$(SLIDES): target/%.html: teach/%.md teach/handout.css
	@command -v npx >/dev/null || { echo "npx is missing: it comes with Node.js and brings Marp, which makes the slides"; exit 1; }
	@mkdir -p target
	@npx --yes @marp-team/marp-cli@4.5.1 --no-stdin --theme-set teach/handout.css -o $@ $<

site: $(SLIDES) target/tools/site/installed ## Make the workshop as pages for a browser, without server or network: target/site/index.html (needs Node.js)
	@rm -rf target/site
	@target/tools/site/bin/sphinx-build -q -W --keep-going -d target/tools/site/pages -c teach/site . target/site \
	  || { echo "The site is not made: each line above names a file and what is wrong in it."; exit 1; }
	@echo "target/site/index.html"

# Apart from .venv, which need not wait for them.
target/tools/site/installed: teach/site/requirements.txt
	@mkdir -p target/tools
	@"$(PYTHON)" -m venv --clear target/tools/site
	@target/tools/site/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $< \
	  || { echo "The site's tools are not installed: this needs the network once, and Python 3.10 or newer."; exit 1; }
	@touch $@

bundle: ## Pack what a second machine of the same system needs, to run make demo without a network
	@$(SETUP) function
	@.venv/bin/python notebooks/kernel/bundle.py

##@ A class in one account
class: $(CLOUD) ## A stack, a device and an archive for each: make class N=30
	@$(DEPLOY) class $(ZIP)

class-destroy: $(CLOUD) ## Delete all stacks of the class
	@$(DEPLOY) class-destroy

##@ Developing
check: first ## For every save: format, lints, unit, property and doc tests
	@notebooks/kernel/test.sh check

test: test-tools build ## For every landing: also the whole path on a local cloud, faults, the live page, the notebooks
	@notebooks/kernel/test.sh test

test-all: test-tools build ## For every night: the same at full size, the faults with a long soak, and fuzzing (2 hours)
	@notebooks/kernel/test.sh all

# What only the checks need, beside all that setup installs.
test-tools: setup
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r notebooks/kernel/requirements-test.txt

bench: cloud test-tools ## Measure the function against its peers, and a round trip: 7 minutes (Linux; 500 MB of Python packages)
	@bench/run.sh

faults: build test-tools ## Break network, broker, function and store, and count the lost: make faults SOAK=1 CASE=broker
	@FULL=1 .venv/bin/python -m pytest -p no:cacheprovider -q -n 2 --dist loadfile client/tests/faults

# Coverage-guided, on stable Rust: libFuzzer without a sanitizer, as there is no unsafe code of ours to watch.
fuzz: ## Fuzz all that reads what comes from outside: make fuzz RUNS=1000000 (needs a C++ compiler; first 5 minutes)
	@cargo install --quiet --locked --root target/tools cargo-fuzz@0.13.2
	@set -e; for reader in request event model; do \
	  echo "fuzz: $$reader, $(RUNS) runs, log in target/fuzz/$$reader.log"; mkdir -p target/fuzz/$$reader; \
	  target/tools/bin/cargo-fuzz fuzz run $$reader --fuzz-dir iris_fn/fuzz --target-dir target/fuzz/build \
	    --sanitizer none --codegen-units 16 target/fuzz/$$reader iris_fn/fuzz/corpus/$$reader -- \
	    -runs=$(RUNS) -max_len=4096 -artifact_prefix=target/fuzz/$$reader- -verbosity=0 -print_final_stats=1 \
	    > target/fuzz/$$reader.log 2>&1 || { tail -n 40 target/fuzz/$$reader.log; exit 1; }; grep stat:: target/fuzz/$$reader.log; \
	done

clean: stop ## Delete all that was made here: builds, .venv, the local cloud's contents, devices' keys
	rm -rf target .venv

.PHONY: help demo lab setup first run notebooks progress kernel local cloud stop bucket publish build plan deploy versions rollback device device-dir status invoke logs tail policy boundary cost doctor destroy live class class-destroy predict load dlq redrive schedule slides site bundle check test test-all test-tools bench faults fuzz clean
