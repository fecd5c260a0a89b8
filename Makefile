.DEFAULT_GOAL := help
.PHONY: help setup wheels package install uninstall demo test test-vm test-packages test-everywhere bench judge fuzz fuzz-seccomp soak

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## system packages (as root, through apt) and .venv
	@.ci/setup

wheels: ## build/wheels, to install balloond from (not as root); EXTRA=ctl for the demo's too
	@.ci/wheels

package: ## build/package, the Debian package of what is committed (installs what that takes)
	@.ci/package

install: ## copy all to PREFIX=/usr/local (DESTDIR=, SYSCONFDIR=/etc), with the distribution's Python
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' PYTHON='$(PYTHON)' .ci/install

uninstall: ## remove what make install has copied, but for the configuration file
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' PYTHON='$(PYTHON)' .ci/install uninstall

demo: setup ## a 4 GiB guest, a host that runs low, a live chart
	@.venv/bin/balloonctl demo $(ARGS)

test: setup ## linters, unit, property and kernel tests
	@.venv/bin/python -m pytest -n 4 --dist worksteal $(ARGS)

test-vm: setup ## real Linux guests in QEMU, the service under a real systemd
	@.venv/bin/python -m tests.vm.images
	@.venv/bin/python -m pytest -m vm -n 2 --dist loadfile tests/vm $(ARGS)

test-packages: setup package ## that package in clean roots of Debian 12, 13 and the next, under their own systemd
	@.venv/bin/python -m tests.packages.roots
	@.venv/bin/python -m tests.packages.libvirt_root
	@.venv/bin/python -m tests.packages.piuparts_root
	@.venv/bin/python -m pytest -m package -n 2 tests/packages $(ARGS)

test-everywhere: setup ## make test and a soak on each Debian and Python, in roots of their own (ARGS='forky trixie')
	@.venv/bin/python -m tests.everywhere $(ARGS)

fuzz: setup ## attacks on everything for TIME=600 seconds; the last line is a JSON object
	@.venv/bin/python -c 'import atheris' 2>/dev/null || .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/fuzz.txt
	@.venv/bin/python -m tests.fuzz --time $(or $(TIME),600) $(ARGS)

soak: setup ## kills and reboots for TIME=600 seconds, every page checked; then attacks (ARGS=--attacks-only)
	@.venv/bin/python -m tests.soak --time $(or $(TIME),600) $(ARGS)

fuzz-seccomp: setup ## a million calls: policy text against its evaluator and its BPF (ARGS="N SEED")
	@.venv/bin/python -m tests.property.test_seccomp_compiler $(ARGS)

bench: setup ## speed and size beside their goals (ARGS='reclaim cost' for some; ARGS=compare BASE=REV for two builds)
	@.venv/bin/python -m benchmarks $(ARGS) $(if $(BASE),--base $(BASE))

judge: setup ## each policy on simulated hosts; on guests that you recorded (RECORDINGS=DIR)
	@.venv/bin/balloonctl judge $(if $(RECORDINGS),--recordings $(RECORDINGS),$(addprefix --trace ,$(wildcard docs/traces/*.trace))) $(ARGS)
