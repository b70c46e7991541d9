# The commands of the project. `make help` lists them.

GO        ?= go
BIN       := bin
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
COUNT     ?= 1
# Many tests wait for something, so that more of them than there are CPUs fit in.
PARALLEL  ?= 4
SIZE      ?= 4
ROUNDS    ?= 3
CHROMIUM  ?= chromium
LINT      := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
OASDIFF   := github.com/oasdiff/oasdiff@v1.36.0
FUZZ      := $(CURDIR)/.ci/fuzz

.DEFAULT_GOAL := help
.PHONY: help build man release-check demo test race verify generate lint vulncheck fuzz bench bench-client bench-deps bench-peers contract test-ui services

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

build: ## build both commands into bin/
	CGO_ENABLED=0 $(GO) build -tags grpcnotrace -trimpath -ldflags=-s -o $(BIN)/ ./client/cmd/downlink ./server/cmd/downlinkd

man: build ## write manual pages and shell completions into bin/
	@mkdir -p bin/man bin/completions
	@for c in downlink downlinkd; do \
		env -u XDG_DATA_HOME HOME='$$HOME' SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/$$c man bin/man && \
		for shell in bash zsh fish; do $(BIN)/$$c completion $$shell >bin/completions/$$c.$$shell || exit 1; done && \
		$(BIN)/$$c completion powershell >bin/completions/$$c.ps1 || exit 1; \
	done

release-check: ## build the archives of a release into dist/, without publishing (needs goreleaser and syft)
	goreleaser release --snapshot --clean

demo: build ## run the main job, start to finish, on the sample data
	@server/testdata/demo.sh $(BIN)

test: ## run all tests (those of services only with what `make services` prints)
	$(GO) test -parallel $(PARALLEL) ./...

race: ## run all tests under the race detector
	$(GO) test -race -parallel $(PARALLEL) -timeout 15m ./...

generate: ## write gen/ from api/openapi.yaml
	$(GO) generate ./...

verify: generate ## check that generated code and go.mod are current
	$(GO) mod tidy -diff
	@test -z "$$(git status --porcelain)" || { git status --short; git diff --stat; echo "generated code is not current: commit what 'make generate' wrote"; exit 1; }

lint: ## run the linters
	$(GO) run $(LINT) run

vulncheck: ## look for known vulnerabilities in what is called
	@.ci/vulncheck

fuzz: ## run every fuzz target for FUZZTIME (default 10s)
	@$(FUZZ) $(FUZZTIME)

bench: ## run the benchmarks, in benchstat's format (BENCHTIME, COUNT)
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -count $(COUNT) ./...

bench-client: ## compare "downlink get" with curl on a package of 4 GB (SIZE, in GB)
	$(GO) run ./client/internal/benchclient -size $(SIZE)

contract: ## check api/openapi.yaml, what changed in it since the last release, and the server against it
	$(GO) test -count=1 -run 'TestContract|TestDocument|TestClient|Example' ./server ./server/servertest
	@tag=$$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) || { echo "no release yet: nothing to compare api/openapi.yaml with"; exit 0; }; \
	old=$$(mktemp) && trap 'rm -f "$$old"' EXIT && git show "$$tag:api/openapi.yaml" >"$$old" && \
	echo "changes of api/openapi.yaml since $$tag that break clients:" && \
	$(GO) run $(OASDIFF) breaking --fail-on ERR "$$old" api/openapi.yaml

bench-deps: ## install what bench-peers compares with (Debian: nginx, zip, 7zip, curl, aria2)
	@server/testdata/benchdeps.sh

bench-peers: ## compare downlinkd with nginx and others on 4 GB of data (SIZE, in GB; ROUNDS)
	$(GO) run ./server/internal/benchpeers -size $(SIZE) -rounds $(ROUNDS)

test-ui: ## open the page /docs in Chromium (CHROMIUM) and leave a screenshot of it in bin/docs.png
	@mkdir -p $(BIN)
	DOWNLINK_TEST_CHROMIUM=$(CHROMIUM) DOWNLINK_TEST_SCREENSHOT=$(CURDIR)/$(BIN)/docs.png $(GO) test -count=1 -run TestDocsInBrowser -v ./server

services: ## start a throwaway PostgreSQL and S3 server for the tests and print how to reach and stop them
	@server/testdata/services.sh start
