# SPDX-License-Identifier: Apache-2.0
#
# Frail. "make help" lists what there is.

GO ?= go
# One binary for hosts with and without libvirt.so: it is loaded at run time.
TAGS := libvirt_dlopen
DESTDIR ?=
PREFIX ?= /usr
# Of make install: where zsh looks for completions depends on who packaged it.
ZSHDIR ?= $(PREFIX)/share/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
# Of make install: the kernel's release whose module is installed with the rest.
RELEASE ?=
KO ?= kmod/frail.ko
VERSION := $(shell cat VERSION)
# Of make sbom.
CYCLONEDX := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
DKMS = $(DESTDIR)$(PREFIX)/src/frail-$(VERSION)
# Of make lab-test: the tests to run, as a regular expression.
RUN ?= .
# The lab's host: bookworm, trixie, sid or debug. Some shells have a variable of that
# name, so only the command line counts.
HOST := bookworm
# Of make lab-small: what sh runs.
RUN_CMD ?= dmesg
# Of the small host: amd under QEMU, or intel under Bochs, which is slow and gets less to do.
VENDOR := amd
# Of make lab-proof: the tests to run, as a regular expression. If empty: on AMD all but
# the longest, on Intel those of what is its own.
PROOF ?=
PROOF_FLAGS = $(if $(PROOF),-test.run "$(PROOF)",$(if $(filter intel,$(VENDOR)),\
	-test.run "TestTruth/1vcpu/.*/pti=on|Registers|TestRefused",\
	-test.skip "TestSelftests|TestNewKernel/(reset|kexec_to_another)|TestNested/traced|TestDebugger/entry"))
PROOF_TIMEOUT ?= $(if $(filter intel,$(VENDOR)),60m,40m)
# How long one guest of it may take.
PROOF_LIMIT ?= $(if $(filter intel,$(VENDOR))$(filter debug,$(HOST)),40m,12m)
# Of make lab-selftests: which of them run, and which do not, as patterns of file names.
ONLY ?= *
WITHOUT ?=
# Of make fuzz: how long each target runs.
FUZZTIME ?= 60s
# Of make lab-matrix: what of it, as in "bookworm trixie/intel"; all of it if empty.
CELLS ?=
# Of make guests: which, as in "bookworm trixie/cloud", and how often each boots.
GUESTS ?= all
BOOTS ?= 5
# The lab's own limits; an emulated host is slow, with a debug kernel more so.
LAB_TIMEOUT ?= $(if $(filter debug,$(HOST)),80m,48m)
TEST_TIMEOUT ?= $(if $(filter debug,$(HOST)),75m,45m)

B := build
# What the lab's host sees at /frail. Hosts of both vendors may run at the same time.
H := $B/hosts/$(HOST)$(if $(filter intel,$(VENDOR)),-intel)
LAB := $(GO) run ./lab/cmd/lab --host $(HOST)
GOFILES := $(shell find . -name '*.go' -not -path './build/*')

all: build kmod

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

deps: ## install the Debian packages that are missing
	@lab/deps.sh

build: ## build frail, fraild and the libvirt hook into build/bin, manual pages and completions into build/share
	@mkdir -p $B/bin
	$(GO) build -tags $(TAGS) -o $B/bin/ ./cmd/...
	@rm -rf $B/share
	@$B/bin/frail gen $B/share

kmod: deps ## build frail.ko for this machine's kernel headers
	$(MAKE) -C kmod

generate: deps ## make generated code again
	$(GO) generate ./...

lint: deps ## gofmt, vet, licence headers, sparse on the module
	@test -z "$$(gofmt -l $(GOFILES))" || { gofmt -d $(GOFILES); exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -tags $(TAGS),lab ./lab/...
	@missing=$$(git ls-files --cached --others --exclude-standard -- '*.go' '*.c' '*.h' '*.sh' '*.proto' '*.service' Makefile '*/Makefile' '*/Kbuild' | \
		while read -r f; do head -n 2 "$$f" | grep -q SPDX-License-Identifier || echo "$$f"; done); \
	for f in $$missing; do head -n 1 "$$f" | grep -q 'Code generated' || { echo "error: $$f has no SPDX header" >&2; bad=1; }; done; test -z "$$bad"
	$(MAKE) -C kmod check

unit: deps lab-guest ## the tests that need no emulated host: units, BPF on this kernel, libvirt with TCG domains
	$(GO) test -tags $(TAGS) -timeout $(TEST_TIMEOUT) ./...

fuzz: ## run every fuzz target for FUZZTIME, two at a time
	@grep -r --include='*_test.go' --exclude-dir=build '^func Fuzz' . | \
		sed 's|^\(.*\)/[^/]*:func \(Fuzz[A-Za-z0-9_]*\).*|\1 \2|' | sort | \
		xargs -P 2 -n 2 sh -c 'exec $(GO) test -tags $(TAGS) -run "^$$" -fuzz "^$$2$$" -parallel 1 -fuzzminimizetime 1s -fuzztime $(FUZZTIME) "$$1"' fuzz

test: lint unit fuzz ## every test of a change: make lab-matrix without arguments has more hosts
	@$(MAKE) --no-print-directory lab-matrix CELLS="bookworm trixie/amd/lab-proof"

install: ## install the programs, manual pages and completions, and frail.ko if RELEASE is given (DESTDIR, PREFIX, ZSHDIR, KO)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $B/bin/frail
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/sbin $B/bin/fraild
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/sbin $B/bin/frail-libvirt-hook
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man8 packaging/frail-libvirt-hook.8
	install -D -m 0755 packaging/qemu-hook $(DESTDIR)/etc/libvirt/hooks/qemu.d/frail
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system packaging/fraild.service packaging/frail-module.service
	@if [ -e $(DESTDIR)/etc/frail/frail.toml ]; then echo "$(DESTDIR)/etc/frail/frail.toml is there: left as it is"; else \
		install -v -D -m 0644 -t $(DESTDIR)/etc/frail packaging/frail.toml; fi
	install -d -m 0755 $(DESTDIR)/etc/frail/conf.d
	for s in 1 5 8; do install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man$$s $B/share/man$$s/* || exit 1; done
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions $B/share/completions/frail
	install -D -m 0644 -t $(DESTDIR)$(ZSHDIR) $B/share/completions/_frail
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $B/share/completions/frail.fish
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/frail packaging/grafana-dashboard.json
	if [ -n "$(RELEASE)" ]; then install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/modules/$(RELEASE)/updates $(KO); fi

install-dkms: ## install the module's source for DKMS (DESTDIR, PREFIX)
	install -D -m 0644 -t $(DKMS) VERSION
	install -D -m 0644 -t $(DKMS)/kmod kmod/*.[ch] kmod/Kbuild kmod/Makefile
	install -D -m 0644 -t $(DKMS)/bpf bpf/frail_abi.h
	sed 's/#MODULE_VERSION#/$(VERSION)/' packaging/dkms.conf >$(DKMS)/dkms.conf

sbom: build ## write what each program is made of, as CycloneDX JSON, into build/sbom
	@mkdir -p $B/sbom
	@for program in frail fraild frail-libvirt-hook; do \
		$(GO) run $(CYCLONEDX) bin -json -std -noserial -notimestamp -version v$(VERSION) \
			-output $B/sbom/$$program.cdx.json $B/bin/$$program || exit 1; done
	@ls $B/sbom/*.cdx.json

deb: deps ## build Debian packages in a clean Debian 12, into build/deb
	@packaging/deb.sh build

deb-check: deps ## build the packages twice, compare them and run lintian
	@packaging/deb.sh check

deb-test: deps ## install the packages in Debian 12 and 13, build the module there, remove and purge them
	@packaging/deb.sh test bookworm
	@packaging/deb.sh test trixie

rpm: deps ## build packages for Fedora and RHEL, into build/rpm
	@packaging/rpm.sh build

rpm-check: deps ## build these packages twice, compare them and run rpmlint
	@packaging/rpm.sh check

rpm-test: deps ## install, upgrade and erase these packages with rpm
	@packaging/rpm.sh test

lab-image: deps ## build the lab host's image, if its inputs changed (HOST=name)
	@$(LAB) host-image >/dev/null

lab-guest: deps ## build the lab's guest, if its inputs changed
	@$(LAB) guest $B/guest

lab-module: deps ## build frail.ko, and a livepatch for the tests, for the lab's host into build/hosts
	@$(LAB) module kmod $H/lab
	@$(LAB) module lab/proof/livepatch $H/lab

# All that the lab's host needs of this tree.
lab-files: build small-files
	@rm -rf $H/lab/root
	@$(MAKE) --no-print-directory -s install DESTDIR=$H/lab/root KO=$H/lab/frail.ko RELEASE=$$($(LAB) release)
	@install -m 0755 lab/install.sh $H/lab/
	@CGO_ENABLED=0 $(GO) build -o $H/lab/ ./lab/cmd/lab-guest
	@CGO_ENABLED=0 $(GO) test -c -tags lab -o $H/lab/e2e.test ./lab/e2e

lab-shell: lab-files ## boot the lab's host with a root shell on this terminal (HOST=name)
	@$(LAB) shell

ifeq ($(VENDOR),intel)
lab-test:
	@echo "lab: libvirt does not fit on the Intel host, the small one does: make lab-proof VENDOR=intel" >&2
	@$(MAKE) --no-print-directory lab-proof
else
lab-test: lab-files ## run the end-to-end tests on the lab's host (HOST=name RUN=regexp)
	@$(LAB) run --timeout $(LAB_TIMEOUT) -- \
		'/frail/lab/install.sh && exec /frail/lab/e2e.test -test.v -test.timeout $(TEST_TIMEOUT) -test.run "$(RUN)"'
endif

# The frail command runs on the AMD host only: there it has the libraries, and time to unpack it.
COMMAND := $(if $(filter amd,$(VENDOR)),frail)
# The small host gets these of this tree, at the places where the lab's host has them.
SMALL := $(LAB) small --vendor $(VENDOR) --timeout $(PROOF_TIMEOUT) --memory 2048 --file $H/guest=guest \
	$(foreach f,frail.ko livepatch.ko proof.test lab-cost $(COMMAND),--file $H/lab/$f=lab/$f)
PROOF_TEST := insmod /frail/lab/frail.ko && exec /frail/lab/proof.test -test.v -test.timeout $(PROOF_TIMEOUT) -limit $(PROOF_LIMIT)

small-files: lab-module
	@$(LAB) guest $H/guest >/dev/null
	@CGO_ENABLED=0 $(GO) build -o $H/lab/ ./lab/cmd/lab-truth ./lab/cmd/lab-cost
	@CGO_ENABLED=0 $(GO) test -c -tags lab -o $H/lab/proof.test ./lab/proof
	@$(GO) build -tags $(TAGS) -ldflags '-s -w' -o $H/lab/frail ./cmd/frail

lab-small: small-files ## run a command on the small host (HOST=name VENDOR=amd|intel RUN_CMD=script)
	@$(SMALL) -- '$(subst ','\'',$(RUN_CMD))'

lab-proof: small-files ## run the tests that need no libvirt on the small host: equality, refusals (HOST=name VENDOR=amd|intel PROOF=regexp)
	@$(SMALL) -- '$(PROOF_TEST) $(PROOF_FLAGS)'

lab-matrix: ## run the tests on every host and print what became of them (CELLS="HOST[/VENDOR[/TARGET]] ...")
	@$(GO) run ./lab/cmd/lab-matrix $(CELLS)

# What the lab's host needs to be one where Frail is installed from packages.
packages-files: deps
	@packaging/deb.sh repo $(HOST) $(NEXT)
	@$(LAB) guest $H/guest >/dev/null
	@mkdir -p $H/lab $H/docs
	@CGO_ENABLED=0 $(GO) build -o $H/lab/ ./lab/cmd/lab-guest
	@install -m 0644 -t $H README.md
	@install -m 0644 -t $H/docs docs/*.md
	@install -m 0755 -t $H/lab lab/packages.sh lab/repo.sh lab/demo.sh

lab-packages: NEXT := next
lab-packages: packages-files ## install, upgrade and purge the packages on the lab's host as the documents say, with guests (HOST=name)
	@$(LAB) run --timeout $(LAB_TIMEOUT) -- /frail/lab/packages.sh

lab-signing: packages-files ## install the packages on a lab's host that takes signed modules only (HOST=name)
	@packaging/deb.sh firmware $(HOST)
	@install -m 0755 -t $H/lab lab/signing.sh
	@$(LAB) run --timeout $(LAB_TIMEOUT) --cmdline module.sig_enforce=1 --firmware $H/signing -- /frail/lab/signing.sh

lab-selftests: small-files ## run the kernel's x86 self-tests in traced and in untraced guests (HOST=name VENDOR=amd|intel ONLY=pattern WITHOUT=pattern)
	@selftests=$$($(LAB) selftests) && $(SMALL) --file "$$selftests=selftests" -- '$(PROOF_TEST) -limit $(PROOF_TIMEOUT) -test.run TestSelftests -only "$(ONLY)" -without "$(WITHOUT)"'

lab-cost: small-files ## count the instructions of a traced system call (HOST=name)
	@$(SMALL) --icount -- '/frail/lab/lab-cost --module /frail/lab/frail.ko'

guests: deps ## boot Debian's kernels, compare their symbols and threads with what is read from outside, write docs/guests.md (GUESTS="SUITE[/FLAVOUR] ..." BOOTS=n)
	$(GO) test -tags $(TAGS) -timeout 4h -v ./lab/guests -run TestGuests -guests "$(GUESTS)" -boots $(BOOTS) -document $(CURDIR)/docs/guests.md

bench: deps ## print what a traced call costs, what the analysis of call sequences costs and detects, and how fast layouts are found
	@$(MAKE) --no-print-directory lab-cost
	@sh tracer/bench.sh
	@$(MAKE) --no-print-directory bench-layout

bench-layout: deps ## print how long it takes to find a guest kernel's layout, and in how much memory
	@for host in bookworm trixie sid; do $(GO) run ./lab/cmd/lab --host $$host guest $B/hosts/$$host/guest >/dev/null || exit 1; done
	@$(GO) test -tags $(TAGS) -timeout $(TEST_TIMEOUT) -run '^$$' -bench '^BenchmarkResolve$$' -benchtime 1x ./qmp/layout

demo: packages-files ## install the packages on the lab's host and show a guest's system calls live
	@$(LAB) run --timeout $(LAB_TIMEOUT) -- /frail/lab/demo.sh

clean: ## remove what was built here; the lab's images stay in their cache
	rm -rf $B
	$(MAKE) -C kmod clean

.PHONY: all help deps build kmod generate lint unit fuzz test install install-dkms sbom deb deb-check deb-test rpm rpm-check rpm-test clean \
	lab-image lab-guest lab-module lab-files small-files packages-files lab-small lab-shell lab-test lab-packages lab-signing lab-proof lab-matrix lab-selftests lab-cost guests bench bench-layout demo
