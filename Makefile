# Everything this project does has its target here: `make` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BIN := build/bin
TOOLS := build/tools

# Packages whose tests need IP-in-IP tunnels. They run on the second kernel, which has them.
TUNNEL_TESTS := ./agent/tunnel

# Static, without local paths in them, stamped.
GOBUILD := CGO_ENABLED=0 go build -trimpath
STAMP := -X github.com/hoplite-net/hoplite/api.Version=$(VERSION) -X main.version=$(VERSION)

##@ For everybody

.PHONY: help
help: ## Print this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build hoplite-agent, hoplite-cni, hoplite-controller and netctl into build/bin
	@mkdir -p $(BIN)
	$(GOBUILD) -ldflags '-s -w $(STAMP)' -o $(BIN)/ ./cmd/hoplite-agent ./cmd/hoplite-controller ./cmd/netctl ./cmd/hoplite-cni

.PHONY: demo
demo: prereqs servers build lab-binary ## Show three nodes, their pods and BGP from start to end; leaves nothing behind
	$(BIN)/lab demo

.PHONY: lab
lab: prereqs servers build lab-binary ## Start a three-node cluster on this machine and keep it
	$(BIN)/lab up

.PHONY: lab-down
lab-down: lab-binary ## Remove what `make lab` started
	$(BIN)/lab down

##@ For those who change it

.PHONY: test
test: prereqs servers kernel build lab-binary $(TOOLS)/built ## Run every test; a test that skips fails the run
	@echo "== tests: product"
	HOPLITE_NO_SKIP=1 go test -race -json -timeout 20m ./... | $(TOOLS)/noskip
	@echo "== tests: tunnels on a kernel with ipip"
	@for package in $(TUNNEL_TESTS); do $(MAKE) uml-test PACKAGE=$$package; done
	@echo "== tests: tools"
	cd test/tools && HOPLITE_NO_SKIP=1 go test -json ./... | $(CURDIR)/$(TOOLS)/noskip
	@echo "== tests: lab and end to end"
	cd test && HOPLITE_NO_SKIP=1 go test -race -json -timeout 40m ./... | ../$(TOOLS)/noskip

.PHONY: lint
lint: $(TOOLS)/built ## gofmt, vet, staticcheck, and no raw netlink dumps, in every module
	@echo "== gofmt"
	@files=$$(git ls-files '*.go' | xargs -r ls -d 2>/dev/null | xargs -r gofmt -l); \
		if [[ -n $$files ]]; then echo "not formatted, run gofmt -w:"; echo "$$files"; exit 1; fi
	@for dir in . test test/tools; do \
		echo "== vet, staticcheck, nodump: $$dir"; \
		(cd $$dir && go vet ./... && $(CURDIR)/$(TOOLS)/staticcheck ./... && go vet -vettool=$(CURDIR)/$(TOOLS)/nodump ./...) || exit 1; \
	done

.PHONY: generate
generate: $(TOOLS)/built ## Write generated code and CRDs anew
	test/generate.sh .

.PHONY: check-generate
check-generate: $(TOOLS)/built ## Fail if generating would change anything
	test/check-generate.sh

.PHONY: bench
bench: prereqs servers kernel build lab-binary ## Measure; writes build/bench/report.json and report.md
	cd test && $(GOBUILD) -o ../$(BIN)/bench ./bench
	$(BIN)/bench

.PHONY: image
image: prereqs build $(TOOLS)/built ## Write the container image to build/image/hoplite.tar, for `ctr images import` or `docker load`
	$(TOOLS)/image -bin $(BIN) -name hoplite:$(VERSION) -arch $$(go env GOARCH) -o build/image/hoplite.tar

.PHONY: clean
clean: ## Remove everything built, except the Kubernetes servers and the second kernel, which take minutes
	rm -rf $(BIN) $(TOOLS) build/_generated build/bench build/image build/plain-tests

##@ What the others need

.PHONY: prereqs
prereqs: ## Install the Debian packages that tests and lab use, if any is missing
	@test/prereqs.sh

.PHONY: servers
servers: ## Build the real etcd, kube-apiserver and kubectl
	@test/servers/build.sh etcd kube-apiserver kubectl

.PHONY: kernel
kernel: prereqs ## Build the second kernel, a user-mode Linux with what this machine's may lack
	@test/kernel/build.sh

# The tests of one package of this module, on the second kernel. It has no room for the race detector, nor speed.
.PHONY: uml-test
uml-test:
	@test -d $(PACKAGE) || { echo "uml-test: no package $(PACKAGE)" >&2; exit 1; }
	@mkdir -p build/plain-tests
	CGO_ENABLED=0 go test -c -o build/plain-tests/$(notdir $(PACKAGE)).test $(PACKAGE)
	cd $(PACKAGE) && HOPLITE_NO_SKIP=1 $(CURDIR)/$(BIN)/uml --timeout 20m -- \
		$(CURDIR)/build/plain-tests/$(notdir $(PACKAGE)).test -test.v=test2json \
		| go tool test2json -t -p $(PACKAGE) | $(CURDIR)/$(TOOLS)/noskip

.PHONY: lab-binary
lab-binary:
	@mkdir -p $(BIN)
	cd test && $(GOBUILD) -o ../$(BIN)/ ./cmd/...

# The tools are pinned by test/tools/go.mod, and built from source like all else.
$(TOOLS)/built: $(shell find test/tools -type f)
	@mkdir -p $(TOOLS)
	go -C test/tools build -o $(CURDIR)/$(TOOLS)/ tool ./protogen ./nodump ./noskip ./image
	@touch $@
