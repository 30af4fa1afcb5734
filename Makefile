# Needs Go and, the first time, root on a Debian machine: setup installs the rest.
#
#   make build      the programs, into bin/
#   make demo       a real guest survives the loss of its host, before your eyes
#   make test       everything: lint, unit tests, real guests, with the race detector
#   make failovers  fifty failovers in a row
#   make drills     a hundred drills of every kind in a row, checked from outside; an hour: see DRILL_FLAGS
#   make faults     real daemons and guests struck at every step of the protocol; hours: see FAULT_FLAGS
#   make xen        a guest survives the loss of its host between two real Xen hosts, in emulation, and goes back: ten minutes
#   make xen-conformance    the conformance suite of Xen's driver on a real Xen host, for PVH and for HVM guests: hours
#   make xen-files  a guest of a real Xen host goes into checkpoint files and comes back, and one of xl's comes in: a quarter of an hour
#   make bench      figures, into build/bench.json
#   make bench-checkpoint   checkpoint files beside QEMU's own, into build/bench-checkpoint.json and .svg
#   make bench-checkpoint-xen   checkpoint files of Xen guests beside xl save, into build/bench-checkpoint-xen.json: an hour or more, not run to its end yet
#   make bench-disk the disk's speed beside QEMU's own, into build/bench-disk.json
#   make bench-xen  a Xen guest's pause and bytes beside stock Remus, on a real Xen host in emulation, into build/bench-xen.json: ten minutes
#   make packages   deb and rpm, into build/packages
#   make model      every state of the model of ownership
#   make fuzz       every parser's fuzz target for a while; FUZZ_FLAGS=-keep lets the corpora grow
#   make lint guest guest-big xen-dom0 clean

GO            ?= go
GOLANGCI      := v2.15.0
GOLANGCI_LINT := build/tools/golangci-lint-$(GOLANGCI)
NFPM_VERSION  := v2.45.0
NFPM          := build/tools/nfpm-$(NFPM_VERSION)
FUZZTIME      ?= 20s
FUZZ          ?=
FUZZ_FLAGS    ?=
GUEST_FLAGS   ?=
DEMO_FLAGS    ?=
BENCH_FLAGS   ?=
MODEL_FLAGS   ?=
FAULT_FLAGS   ?=
DRILL_FLAGS   ?=
PACKAGE_FLAGS ?=
XEN_FLAGS     ?=

# The simulation's worlds have one goroutine each: with the race detector a few
# seeds do. Two cores: two packages at a time, and no two targets at once. Packages with
# real guests, or a real browser, come one at a time: their stories are about time.
GOTEST := $(GO) test -race -timeout 15m
REAL   := ./demo ./disk/vhost ./guest ./hypervisor/qemu ./integration ./integration/diskbench ./integration/faults ./packaging/... ./status/dashboard

.NOTPARALLEL:
.PHONY: all build guest guest-big xen-dom0 xen xen-files xen-conformance demo test failovers drills faults bench bench-disk bench-checkpoint bench-checkpoint-xen bench-xen packages lint model fuzz setup clean

all: build

setup:
	@scripts/setup

build:
	$(if $(wildcard cmd/*/main.go),$(GO) build -o bin/ ./cmd/...)

# Written only if something changed, see guest/build.
guest: setup
	@$(GO) run ./guest/build -o build/guest $(GUEST_FLAGS)

# With the disk image of the benchmarks: a whole Debian, made once. Needs root.
guest-big: setup
	@$(GO) run ./guest/build -o build/guest -big $(GUEST_FLAGS)

# A Xen host for tests: Debian's Xen, its tools and kernel. Needs root.
xen-dom0: setup
	@$(GO) run ./guest/build -dom0 build/xen

# On a busy machine: make xen XEN_FLAGS="-lease 12s".
xen: xen-dom0 guest
	$(GO) run ./integration/xen $(XEN_FLAGS)

xen-conformance: xen-dom0 guest
	scripts/xen-try -conformance

xen-files: xen-dom0 guest
	$(GO) run ./integration/xen -story files $(XEN_FLAGS)

demo: setup build guest
	bin/understudy demo $(DEMO_FLAGS)

test: setup guest build lint $(NFPM)
	$(GOTEST) -p 2 $$($(GO) list ./... | grep -vxF "$$($(GO) list $(REAL) ./simulation)")
	$(GO) test -timeout 15m ./simulation
	$(GOTEST) ./simulation -run 'TestSimulation|TestReplay' -seeds 50
	$(GOTEST) -timeout 30m -p 1 $(REAL)

failovers: setup build guest
	bin/understudy demo --repeat 50 $(DEMO_FLAGS)

# Again, or on where it ended: make drills DRILL_FLAGS="-seed 7"; some of them only:
# DRILL_FLAGS="-seed 7 -piece 20".
drills: setup guest
	$(GO) test ./integration -run TestMixedDrills -v -timeout 8h -drills 100 -drills-record $(CURDIR)/build/drills.jsonl $(DRILL_FLAGS)

# A part of it: make faults FAULT_FLAGS="-cells 'captured / kill' -repeat 1"; all at
# random: FAULT_FLAGS="-mixed 200 -seed 7".
faults: setup guest
	$(GO) run ./integration/faults -report build/faults.json $(FAULT_FLAGS)

bench: setup guest
	$(GO) run ./integration/bench --report build/bench.json $(BENCH_FLAGS)

bench-disk: setup guest
	@mkdir -p bin
	$(GO) build -o bin/diskbench ./integration/diskbench
	bin/diskbench -report build/bench-disk.json $(BENCH_FLAGS)

bench-checkpoint: guest-big
	$(GO) run ./integration/bench checkpoint --report build/bench-checkpoint.json --plot build/bench-checkpoint.svg $(BENCH_FLAGS)

bench-xen: xen-dom0 guest
	$(GO) run ./integration/xen/remus -report build/bench-xen.json $(BENCH_FLAGS)

# One type alone: make bench-checkpoint-xen XEN_FLAGS="-type pvh".
bench-checkpoint-xen: xen-dom0 guest-big
	$(GO) run ./integration/xen -story compare -type pvh,hvm,pv -repeat 3 -limit 1h -lease 12s -report build/bench-checkpoint-xen.json $(XEN_FLAGS)

packages: $(NFPM)
	$(GO) run ./packaging/build -nfpm $(NFPM) -out build/packages $(PACKAGE_FLAGS)

# Compiled apart, so that its hundred modules are not ours.
$(NFPM):
	@mkdir -p build/tools
	GOBIN=$(CURDIR)/build/tools $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	@mv build/tools/nfpm $@

# What needs Xen's libraries is built with them, which setup installs.
lint: $(GOLANGCI_LINT)
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GOLANGCI_LINT) run --concurrency 2 ./...
	$(GO) build -tags xen ./...
	$(GO) vet -tags xen ./hypervisor/xen/... ./cmd/daemon ./integration/xen/...
	$(GOLANGCI_LINT) run --concurrency 2 --build-tags xen ./hypervisor/xen/... ./integration/xen/...

# Compiled here, once: its sources come by the module proxy like ours.
$(GOLANGCI_LINT):
	@mkdir -p build/tools
	GOBIN=$(CURDIR)/build/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	@mv build/tools/golangci-lint $@

model: setup
	$(GO) run ./model $(MODEL_FLAGS)

fuzz:
	scripts/fuzz $(FUZZ_FLAGS) $(FUZZTIME) $(FUZZ)

clean:
	rm -rf bin build
