.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vm bench fuzz fuzz-seccomp

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## system packages (as root, through apt) and .venv
	@.ci/setup

demo: setup ## a 4 GiB guest, a host that runs low, a live chart
	@.venv/bin/balloonctl demo $(ARGS)

test: setup ## linters, unit, property and kernel tests
	@.venv/bin/python -m pytest $(ARGS)

test-vm: setup ## real Linux guests in QEMU
	@.venv/bin/python -m tests.vm.images
	@.venv/bin/python -m pytest -m vm tests/vm $(ARGS)

fuzz: fuzz-seccomp ## long random campaigns

fuzz-seccomp: setup ## a million calls: policy text against its evaluator and its BPF (ARGS="N SEED")
	@.venv/bin/python -m tests.property.test_seccomp_compiler $(ARGS)

bench: setup ## speed and size beside their goals (ARGS='reclaim cost' for some)
	@.venv/bin/python -m benchmarks $(ARGS)
