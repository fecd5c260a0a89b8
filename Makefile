.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vm

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## system packages (as root, through apt) and .venv
	@.ci/setup

demo: setup ## a 4 GiB guest, a host that runs low, a live chart
	@.venv/bin/balloonctl demo $(ARGS)

test: setup ## linters, unit, property and kernel tests
	@.venv/bin/python -m pytest $(ARGS)

test-vm: setup ## real Linux guests in QEMU
	@.venv/bin/python -m pytest -m vm tests/vm $(ARGS)
