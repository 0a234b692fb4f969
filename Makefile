# varve: make demo | test | bench | lint. What is missing is installed from Debian's packages (as
# root), or named.

LAB := target/debug/varve-lab
# Tests run several guests in one emulated host, one after another.
export VARVE_LAB_OPTS ?= --mem 3072 --timeout 2400
# Those that need devices have them in the lab, wherever they run: soft-RoCE, memory of other kinds.
export VARVE_LAB_OPTS_OFFLOAD ?= --rdma
export VARVE_LAB_OPTS_PAGER ?= --rdma
export VARVE_LAB_OPTS_POOL ?= --rdma
export VARVE_LAB_OPTS_TIERS ?= --rdma --cxl 256 --dax 64 --devdax 64

.PHONY: demo test test-fast test-vm bench fuzz lint images clients strace lab qemu tools clean

# The life of a function: boot, snapshot, record, tier, restore with each strategy. Prints tables, and
# writes target/demo/report.html. DEMO="--function pagerank" shows another function, --quick less.
demo: VARVE_LAB_OPTS += --rw target/demo
demo: images lab
	cargo build --release -p varve-vmm -p varve-benches
	mkdir -p target/demo
	$(LAB) exec -- target/release/varve-demo $(DEMO)

# Everything: unit and property tests here, tests with machines where KVM works.
test: qemu test-fast test-vm

test-fast: images strace lab
	@mkdir -p target; rm -f target/skipped
	VARVE_SKIPPED=$(CURDIR)/target/skipped \
		cargo test --workspace --exclude varve-tests --features varve-lab/lab-tests
	@echo "skipped tests: $$(cat target/skipped 2>/dev/null | wc -l)"; cat target/skipped 2>/dev/null || true

test-vm: images clients strace lab
	cargo build -p varve-vmm -p varve-jailer -p varve-benches
	tests/all
	cargo test -p varve-lab --features two-hosts --test two_hosts

# Compares restore methods, by virtual time in the lab, on two processors, which takes hours. Figures are printed, and saved in
# target/bench. BENCH="compare --quick" does less, BENCH=all measures everything else, BENCH="boot --runs 10" a
# part of it.
BENCH ?= compare
bench: VARVE_LAB_OPTS = --cpus 2 --mem 6144 --timeout 172800 --icount --rw target/bench
bench: images lab
	cargo build --release -p varve-vmm -p varve-benches
	mkdir -p target/bench
	@[ "$$($(LAB) detect 2>/dev/null)" = native ] || tests/lab/qemu/build || { \
		echo "make bench: going on with the installed QEMU, on one processor: the lab hangs now and then, and is started again" >&2; \
		VARVE_LAB_OPTS=$$(echo "$$VARVE_LAB_OPTS" | sed 's/--cpus [0-9]*//'); }; \
	$(LAB) exec -- target/release/varve-bench $(BENCH)

# Damaged metadata and requests, and badly spoken guests, at random, for a bounded time; guided by coverage where cargo-fuzz is installed
# (cargo install --locked cargo-fuzz, and a C++ compiler).
FUZZ_SECONDS ?= 60
FUZZ_CASES ?= 100000

fuzz: tools
	PROPTEST_CASES=$(FUZZ_CASES) cargo test -p varve-snapshot --test damage -- random_damage noise
	PROPTEST_CASES=$(FUZZ_CASES) cargo test -p varve-devices --test mmds -- harm
	PROPTEST_CASES=$(FUZZ_CASES) cargo test -p varve-vmm --test api_damage
	@if cargo fuzz --version >/dev/null 2>&1; then cd snapshot && for file in state manifest trace; do \
		mkdir -p fuzz/corpus/$$file && cp tests/golden/$$file fuzz/corpus/$$file/ && \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$file -- -max_len=8192 -max_total_time=$(FUZZ_SECONDS) || exit 1; done && \
		cd ../devices && for target in mmds_packets mmds_requests; do \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target -- -max_len=8192 -max_total_time=$(FUZZ_SECONDS) || exit 1; done && \
		cd ../vmm && RUSTC_BOOTSTRAP=1 cargo fuzz run api_requests -- -max_len=8192 \
			-max_total_time=$(FUZZ_SECONDS); else \
		echo "cargo-fuzz is not installed: parsers were fuzzed without coverage"; fi

# Guest kernel, initramfs and function image, under target/guest.
images: tools
	cargo run --quiet -p varve-guest-images -- all

# A Python library for Firecracker, which a test drives varve with: what tests/clients names, from PyPI.
CLIENTS := target/clients
clients: $(CLIENTS)/.made

$(CLIENTS)/.made: tests/clients/requirements.txt
	@/usr/bin/python3 -m pip --version >/dev/null 2>&1 || if [ "$$(id -u)" = 0 ]; then apt-get -qq update && \
		apt-get -qq install -y --no-install-recommends python3 python3-pip; else \
		echo "Python is missing: apt-get install python3 python3-pip" >&2; exit 1; fi
	rm -rf $(CLIENTS)
	PIP_ROOT_USER_ACTION=ignore /usr/bin/python3 -m pip --quiet --disable-pip-version-check install --no-deps --require-hashes \
		--only-binary :all: --target $(CLIENTS) --requirement $<
	touch $@

# Kills each verb that writes at each rename, sync and removal, and disturbs it there.
strace:
	@command -v strace >/dev/null || if [ "$$(id -u)" = 0 ]; then apt-get -qq update && \
		apt-get -qq install -y --no-install-recommends strace; else \
		echo "strace is missing: apt-get install strace" >&2; exit 1; fi

# The emulated host, where this machine's KVM cannot run guests, or has not the devices.
lab: tools
	cargo build --quiet -p varve-lab
	@$(LAB) setup

lint: tools
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	@if ! cargo deny --version >/dev/null 2>&1; then \
		echo "cargo-deny is not installed: licences not checked (cargo install --locked cargo-deny)"; \
	else cargo deny check licenses bans sources && \
		if cargo deny fetch db >/dev/null 2>&1; then cargo deny check advisories; else \
		echo "the advisory database is not reachable: advisories not checked"; fi; fi

# A QEMU for labs that count instructions or have several CPUs.
qemu: lab
	@[ "$$($(LAB) detect 2>/dev/null)" = native ] || tests/lab/qemu/build || \
		echo "make qemu: tests that need this QEMU are skipped" >&2

# What the build itself needs: a linker.
tools:
	@command -v cargo >/dev/null || { echo "Rust is missing: install it by rustup" >&2; exit 1; }
	@command -v cc >/dev/null || \
	if [ "$$(id -u)" = 0 ]; then apt-get -qq update && \
		apt-get -qq install -y --no-install-recommends gcc libc6-dev; else \
		echo "A linker is missing: apt-get install gcc libc6-dev" >&2; exit 1; fi

clean:
	cargo clean
