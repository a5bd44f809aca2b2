# The two commands of the README are `make demo` and `make test`. Everything else is for developers.

PREFIX  ?= /usr/local
DESTDIR ?=
CARGO   ?= cargo

# So long a chaos run by hand takes; CI's takes a minute.
CHAOS_SECONDS ?= 600

.PHONY: help demo test check clients crash chaos upgrade bench build packages install uninstall

help:
	@echo "make demo     a job becomes a microVM, answers, is forked, stops, goes on and is gone; needs root"
	@echo "make test     the whole suite; needs root"
	@echo "make clients  curl, Daytona's SDKs, Chromium, Autobahn's cases and others through the proxy; needs root, minutes"
	@echo "make crash    every job killed at every crash point, and again at every point of the recovery; needs root, long"
	@echo "make chaos    ten minutes of everything at once; CHAOS_SEED=N repeats a run; needs root"
	@echo "make check    formatting, lints and docs, as CI runs them"
	@echo "make upgrade  an older runner's store and VMs under this one; REVISION names the commit; needs root"
	@echo "make bench    stage times, poll latency and idle costs as tables; needs root"
	@echo "make install  the release binary, units and settings to the guide's paths"

packages:
	@scripts/packages.sh

build:
	$(CARGO) build --workspace --locked

demo:
	@scripts/demo.sh

test: packages
	@scripts/test.sh

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

upgrade: packages
	@scripts/upgrade.sh $(REVISION)

# Installs them; `make test` skips those that are not there.
clients:
	@scripts/clients.sh

crash: packages build
	CRASH_ROUNDS=double $(CARGO) nextest run --locked --no-fail-fast --success-output final --test crashes

chaos: packages build
	CHAOS_SECONDS=$(CHAOS_SECONDS) $(CARGO) test --locked --test chaos -- --nocapture

bench: packages
	@scripts/bench.sh

# The settings are kept when they are already there; nothing is started or restarted.
install:
	$(CARGO) build --release --locked --bin runner-ch
	install -D -m 0755 target/release/runner-ch $(DESTDIR)$(PREFIX)/bin/runner-ch-local
	install -D -m 0755 guest/runner-ch-identity $(DESTDIR)$(PREFIX)/share/runner-ch/runner-ch-identity
	install -D -m 0644 systemd/runner-ch.service $(DESTDIR)/etc/systemd/system/runner-ch.service
	install -D -m 0644 systemd/daytona-tunnel.service $(DESTDIR)/etc/systemd/system/daytona-tunnel.service
	test -e $(DESTDIR)/etc/runner-ch-local.env || \
		install -D -m 0600 config/runner-ch-local.env.sample $(DESTDIR)/etc/runner-ch-local.env
	install -d -m 0755 $(DESTDIR)/var/lib/cloud-hypervisor/snapshots \
		$(DESTDIR)/var/lib/cloud-hypervisor/kernels $(DESTDIR)/var/lib/cloud-hypervisor/firmware
	install -d -m 0700 $(DESTDIR)/var/lib/cloud-hypervisor/sandboxes
	@echo "Set SERVER_URL and API_TOKEN in /etc/runner-ch-local.env, then: systemctl enable --now runner-ch"

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/share/runner-ch/runner-ch-identity $(DESTDIR)$(PREFIX)/bin/runner-ch-local $(DESTDIR)/etc/systemd/system/runner-ch.service \
		$(DESTDIR)/etc/systemd/system/daytona-tunnel.service
