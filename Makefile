# Everything that hrun needs done, from nothing. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# The steps build on each other; cargo and the kernel use all CPUs by themselves.
.NOTPARALLEL:

# Where everything is built: cargo's target directory, guest parts included.
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
export HRUN_TARGET_DIR := $(TARGET)

HRUN := $(TARGET)/release/hrun
CARGO ?= cargo

# Where `make install` puts things; DESTDIR goes in front, for packagers.
PREFIX ?= /usr/local
DESTDIR ?=
# How long each fuzz target runs, how often bench-boot, -image and -rootfs measure, of how many idle
# containers bench-rootfs and bench-engines measure the memory, and arguments for tests and benchmarks.
FUZZ_SECONDS ?= 60
BENCH_ROUNDS ?= 5
BENCH_IDLE ?= 10
# A checkout of opencontainers/runtime-tools after `make runtimetest validation-executables`; without it
# test-oci runs programs of our own.
RUNTIME_TOOLS ?=
ARGS ?=

# Debian packages by what they are for. Rust itself is expected.
KERNEL_PACKAGES := bc bison flex gcc libc6-dev libelf-dev make patch perl xz-utils \
	$(if $(HRUN_KERNEL_TARBALL),,linux-source-6.12)
BUILD_PACKAGES := $(KERNEL_PACKAGES) cpio
DEMO_PACKAGES := busybox-static umoci
TEST_PACKAGES := $(DEMO_PACKAGES) docker-registry erofs-utils g++ mmdebstrap openssl skopeo
ENGINE_PACKAGES := $(TEST_PACKAGES) bsdutils catatonit conmon containerd docker.io podman runc util-linux
BENCH_PACKAGES := $(DEMO_PACKAGES) crun runc
BENCH_BOOT_PACKAGES := qemu-system-x86
BENCH_ENGINES_PACKAGES := $(DEMO_PACKAGES) containerd crun runc util-linux

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# $(call install_packages,PACKAGE...): what is there already costs no network and no root.
define install_packages
	if ! command -v dpkg-query >/dev/null; then \
		echo "This is no Debian: these packages, or what they hold, must be there: $(1)"; \
		exit 0; \
	fi; \
	missing=(); \
	for package in $(1); do \
		state=$$(dpkg-query --show --showformat '$${db:Status-Status}' $$package 2>/dev/null || true); \
		[ "$$state" = installed ] || missing+=($$package); \
	done; \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	if [ -n "$(AS_ROOT)" ] && ! command -v $(AS_ROOT) >/dev/null; then \
		echo "Run this as root, or install them first: $${missing[*]}" >&2; \
		exit 1; \
	fi; \
	echo "Installing: $${missing[*]}"; \
	export DEBIAN_FRONTEND=noninteractive; \
	install=($(AS_ROOT) env DEBIAN_FRONTEND=noninteractive \
		apt-get install --quiet --yes --no-install-recommends "$${missing[@]}"); \
	apt-get install --simulate "$${missing[@]}" >/dev/null 2>&1 && "$${install[@]}" </dev/null || { \
		$(AS_ROOT) apt-get update --quiet; \
		"$${install[@]}" </dev/null; \
	}
endef

##@ Building

.PHONY: build
build: binaries kernel initramfs ## Build hrun, hrun-vmm and the guest's parts (the default)

.PHONY: binaries
binaries: ## Build hrun and hrun-vmm
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: install it with rustup" >&2; exit 1; }
	$(CARGO) build --locked --release -p vmm -p hrun

.PHONY: kernel
kernel: ## Build the guest kernel
	guest-kernel/build.sh

.PHONY: initramfs
initramfs: ## Build the guest's agent and the initramfs that holds it
	rootfs/initramfs/build.sh

.PHONY: install
install: build ## Install below PREFIX (/usr/local)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(HRUN)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/hrun $(TARGET)/release/hrun-vmm
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/hrun \
		$(TARGET)/guest/vmlinux $(TARGET)/guest/initramfs.cpio
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in $(UNITS); do \
		sed 's|@PREFIX@|$(PREFIX)|' vmm/hrun/systemd/$$unit \
			| install -m 0644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; \
	done
	rm -f $(MAN1)/hrun.1 $(MAN1)/hrun-*.1
	$(HRUN) man $(MAN1)
	install -d $(dir $(COMPLETIONS))
	$(HRUN) completions bash > $(word 1,$(COMPLETIONS))
	$(HRUN) completions zsh > $(word 2,$(COMPLETIONS))
	$(HRUN) completions fish > $(word 3,$(COMPLETIONS))

UNITS = hrun-pool.service hrun-restart.service

# Where man and the shells look for what each program brings.
MAN1 = $(DESTDIR)$(PREFIX)/share/man/man1
COMPLETIONS = $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions/hrun \
	zsh/site-functions/_hrun fish/vendor_completions.d/hrun.fish)

.PHONY: uninstall
uninstall: ## Remove what install put below PREFIX; images and containers stay
	rm -f $(DESTDIR)$(PREFIX)/bin/hrun $(addprefix $(DESTDIR)$(PREFIX)/lib/systemd/system/,$(UNITS))
	rm -rf $(DESTDIR)$(PREFIX)/libexec/hrun $(DESTDIR)$(PREFIX)/share/hrun
	rm -f $(MAN1)/hrun.1 $(MAN1)/hrun-*.1 $(COMPLETIONS)

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(TARGET)

##@ Trying it

.PHONY: demo
demo: deps-demo build ## From nothing to a command in a container, on a Debian with Rust
	tests/images/busybox.sh $(TARGET)/demo/busybox
	$(AS_ROOT) $(HRUN) image inspect busybox >/dev/null 2>&1 || \
		$(AS_ROOT) $(HRUN) image load $(TARGET)/demo/busybox/busybox
	@echo; echo "The host runs Linux $$(uname -r). Now: hrun run --rm busybox ..."
	$(AS_ROOT) $(HRUN) run --rm busybox sh -c \
		'echo "Hello from a VM of its own. It runs Linux $$(uname -r), and I am user $$(id -un)."'
	@echo; echo "Try it:  $(if $(AS_ROOT),$(AS_ROOT) )$(HRUN) run -it busybox"

##@ Testing

.PHONY: test
test: deps-test build images ## Run all tests, end-to-end tests in real VMs included
	HRUN_E2E=require $(CARGO) test --locked --workspace $(ARGS)

.PHONY: e2e
e2e: deps-test build images ## Run the end-to-end tests alone; ARGS=name picks some
	HRUN_E2E=require $(CARGO) test --locked -p tests --test e2e -- $(ARGS)

.PHONY: test-engines
test-engines: build images ## Run podman, docker and containerd with hrun as their runtime
	@$(call install_packages,$(ENGINE_PACKAGES))
	$(CARGO) test --locked -p tests --test engines --no-run
	HRUN_ENGINES=require $(AS_ROOT) unshare --mount --net --propagation private -- \
		$(CARGO) test --locked -p tests --test engines -- $(ARGS)

.PHONY: test-oci
test-oci: deps-demo build ## Run the validation programs of RUNTIME_TOOLS, a built checkout of runtime-tools
	$(CARGO) test --locked -p tests --test oci --no-run
	$(AS_ROOT) env HRUN_E2E=require HRUN_RUNTIME_TOOLS=$(abspath $(RUNTIME_TOOLS)) \
		$(CARGO) test --locked -p tests --test oci -- $(ARGS)

.PHONY: lint
lint: ## Check formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: fuzz
fuzz: deps-test ## Run each fuzz target for FUZZ_SECONDS (60)
	tests/fuzz/run.sh $(FUZZ_SECONDS)

.PHONY: images
images: deps-test ## Make the images that the end-to-end tests run
	tests/images/busybox.sh $(TARGET)/test-images/busybox
	tests/images/variants.sh $(TARGET)/test-images/busybox $(TARGET)/test-images/variants
	tests/images/debian.sh $(TARGET)/test-images/debian

##@ Measuring

# A store of its own; only bench-boot needs qemu, which is large.
.PHONY: bench bench-quick
bench: bench-store ## Measure hrun against crun and runc; ARGS=--help tells what else it can do
	$(BENCH) --output $(TARGET)/bench/results $(ARGS)
bench-quick: bench-store ## The same within three minutes, with few samples
	$(BENCH) --quick --output $(TARGET)/bench/results-quick $(ARGS)

BENCH = $(AS_ROOT) env HRUN_STORE=$(TARGET)/bench/store $(HRUN) bench

.PHONY: bench-store
bench-store: deps-bench build
	tests/images/busybox.sh $(TARGET)/bench/image
	$(AS_ROOT) env HRUN_STORE=$(TARGET)/bench/store $(HRUN) image load --quiet $(TARGET)/bench/image/busybox >/dev/null

.PHONY: bench-image
bench-image: deps-test binaries ## Load and pull a Debian by hrun and by skopeo and umoci in turns and compare
	tests/images/debian.sh $(TARGET)/test-images/debian
	$(AS_ROOT) tests/bench/image.sh $(HRUN) $(TARGET)/test-images/debian/debian $(BENCH_ROUNDS)

.PHONY: bench-rootfs
bench-rootfs: deps-test build images ## Compare the three ways of a root file system into the guest
	$(AS_ROOT) tests/bench/rootfs.sh $(HRUN) $(TARGET)/test-images/busybox/busybox \
		$(TARGET)/test-images/debian/debian $(BENCH_ROUNDS) $(BENCH_IDLE)

.PHONY: bench-engines
bench-engines: build ## Time and memory of containers under containerd: hrun, runc and crun in turns
	@$(call install_packages,$(BENCH_ENGINES_PACKAGES))
	tests/images/busybox.sh $(TARGET)/test-images/busybox
	$(CARGO) build --locked --release -p tests --bin bench-engines
	$(AS_ROOT) unshare --mount --net --propagation private -- \
		$(TARGET)/release/bench-engines --idle $(BENCH_IDLE) $(ARGS)

.PHONY: bench-boot
bench-boot: deps-bench-boot build ## Boot by hrun-vmm, qemu's microvm and, if there, Firecracker in turns
	$(CARGO) run --locked --release -p tests --bin bench-boot -- --rounds $(BENCH_ROUNDS) $(ARGS)

##@ Packages that Debian has

.PHONY: deps deps-build deps-demo deps-test deps-bench deps-bench-boot
deps: ## Install whatever is missing for everything below
	@$(call install_packages,$(BUILD_PACKAGES) $(TEST_PACKAGES) $(BENCH_PACKAGES) $(BENCH_BOOT_PACKAGES))
deps-build: ## Install what building needs
	@$(call install_packages,$(BUILD_PACKAGES))
deps-demo: ## Install what the demo needs
	@$(call install_packages,$(BUILD_PACKAGES) $(DEMO_PACKAGES))
deps-test: ## Install what the tests need
	@$(call install_packages,$(BUILD_PACKAGES) $(TEST_PACKAGES))
deps-bench: ## Install what the benchmark needs
	@$(call install_packages,$(BUILD_PACKAGES) $(BENCH_PACKAGES))
deps-bench-boot: ## Install what bench-boot needs
	@$(call install_packages,$(BUILD_PACKAGES) $(BENCH_BOOT_PACKAGES))

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
