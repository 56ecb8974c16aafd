# Each target prints what it does. `make demo` and `make test` install what they need on a fresh Debian 12 or 13.
SHELL := /bin/bash
TOOLCHAIN := export AGENTLAB_ROOT=$(CURDIR); . packaging/toolchain.sh && agentlab_find_cargo &&

.PHONY: help demo stand-in test pve-contract survival setup build runner deb deb-test lint fmt bench soak clean-demo

help:
	@echo "make demo        a real job in a real VM, from nothing (KEEP=1 leaves the daemon up)"
	@echo "                 BACKEND=proxmox: through Proxmox VE's REST API, against a stand-in"
	@echo "make clean-demo  removes a demo that was left up"
	@echo "make test        every check and test: lint, unit, contract, netns, vm"
	@echo "make pve-contract  what the back end promises, asked of your own node: docs/proxmox.md"
	@echo "make bench       ratios against named baselines"
	@echo "make survival    the daemon killed and disturbed around real VMs, at every kind of moment"
	@echo "make soak        SOAK_MINUTES (30) of fuzzing, SOAK_SEEDS (10000) fault schedules, SOAK_JOBS (20) jobs in VMs"
	@echo "make build       release binaries in target/release, the guest's in target/guest"
	@echo "make deb         Debian packages in target/deb, checked by lintian"
	@echo "make deb-test    their whole life in a clean Debian (SUITE=trixie for another one)"
	@echo "make lint fmt    what CI says about style; rustfmt"

demo:
	@packaging/with-sudo packaging/setup demo
	@packaging/with-sudo $(MAKE) --no-print-directory build $(if $(filter proxmox,$(BACKEND)),stand-in)
	@BACKEND=$(BACKEND) packaging/demo/run

stand-in:
	@echo "build: the Proxmox VE stand-in that boots VMs"
	@$(TOOLCHAIN) cargo build --quiet --locked --package agentlab-tests-pve-sim

test:
	@packaging/setup test
	@packaging/test

pve-contract:
	@packaging/setup demo
	@$(TOOLCHAIN) cargo test --locked --package agentlab-backend --test contract a_genuine_node_keeps -- --ignored --test-threads=1

build: runner
	@echo "build: release binaries"
	@$(TOOLCHAIN) cargo build --quiet --locked --release --package agentlabd --package agentlab --package agentlab-netpolicy --package agentlab-resolver --package agentlab-template

runner:
	@echo "build: agent-runner, static"
	@packaging/build-runner

deb:
	@packaging/with-sudo packaging/deb

deb-test:
	@packaging/deb-test $(SUITE)

lint:
	@packaging/lint

fmt:
	@$(TOOLCHAIN) cargo fmt --all

bench:
	@packaging/setup test
	@packaging/bench

survival:
	@packaging/setup test
	@packaging/build-runner
	@$(TOOLCHAIN) cargo build --quiet --locked --workspace --bins && cargo test --locked --package agentlab-tests-vm --test survival -- --test-threads=1
	@$(TOOLCHAIN) AGENTLAB_KILLS=50 cargo test --locked --package agentlab-tests-vm --test rest -- --test-threads=1

soak:
	@packaging/setup test
	@packaging/soak

clean-demo:
	@packaging/demo/run clean
