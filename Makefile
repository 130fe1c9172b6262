# One word for each intent; `make` alone lists them.
GO       ?= go
VERSION  ?= $(shell git describe --tags --dirty 2>/dev/null || sed -n 's/^const release = "\(.*\)"/\1/p' cmd/understudy/version.go)
LINT     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VULN     := golang.org/x/vuln/cmd/govulncheck@v1.2.0
FUZZTIME ?= 30s

export CGO_ENABLED = 0

# What the tests want beside Go, each by the program that shows it is there
# and the package of Debian that has it.
TEST_DEPS := haproxy:haproxy nginx:nginx-light busybox:busybox-static ip:iproute2 nft:nftables pgrep:procps curl:curl strace:strace slowhttptest:slowhttptest systemd-analyze:systemd postgres:postgresql redis-server:redis-server mariadbd:mariadb-server lintian:lintian debootstrap:debootstrap mandoc:mandoc zsh:zsh fish:fish openssl:openssl ssh:openssh-client sshd:openssh-server tmux:tmux mosquitto_pub:mosquitto-clients kcat:kcat ldapsearch:ldap-utils etcd:etcd-server keepalived:keepalived chromium:chromium promtool:prometheus jsonnet:jsonnet
NGINX_STREAM := /usr/share/nginx/modules-available/mod-stream.conf
PYMONGO := /usr/lib/python3/dist-packages/pymongo

# The race detector wants a C compiler; without one the tests run all the same.
RACE := $(shell command -v gcc >/dev/null 2>&1 && echo yes)

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/understudy, one static binary
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

.PHONY: run
run: build ## run the demo: two small hosts, a relay and /ping
	@./bin/understudy demo

.PHONY: test
test: ## run all tests, with the race detector where gcc is
ifeq ($(RACE),yes)
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -timeout=20m ./...
else
	@echo '*** no gcc: the tests run WITHOUT the race detector (apt-get install gcc libc6-dev)' >&2
	$(GO) test -shuffle=on -timeout=20m ./...
endif

.PHONY: race
race: ## run all tests under the race detector, or fail
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -timeout=20m ./...

.PHONY: test-deps
test-deps: ## install what the tests want from Debian, as far as it is missing
	@missing=; \
	for dep in $(TEST_DEPS); do \
		PATH=$$PATH:/usr/sbin:/sbin$$(printf :%s /usr/lib/postgresql/*/bin) command -v $${dep%%:*} >/dev/null 2>&1 || missing="$$missing $${dep#*:}"; \
	done; \
	[ -e $(NGINX_STREAM) ] || missing="$$missing libnginx-mod-stream"; \
	[ -e $(PYMONGO) ] || missing="$$missing python3-pymongo"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "installing:$$missing"; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing

.PHONY: prove
prove: ## explore the agreement of two instances to the end, and simulate that of several (two to three hours, 10 GB)
	$(GO) test ./cluster -run 'Explor|CodesOfSides|Simulation' -v -count=1 -timeout 6h -explore 400000000 -simulate 10000

.PHONY: nemesis
nemesis: ## 50 rounds of random faults against three instances and etcd, each cut, a long outage (15 minutes; root)
	UNDERSTUDY_RUNS=50 UNDERSTUDY_CUTS=all UNDERSTUDY_OUTAGE=1m $(GO) test ./e2e -run '^TestCluster(Nemesis|EveryCut|StoreAway)$$' -v -count=1 -timeout 1h

.PHONY: lint
lint: ## golangci-lint, with the rules of .golangci.yml
	$(GO) run $(LINT) run --allow-parallel-runners ./...

.PHONY: vuln
vuln: ## look for known vulnerabilities in what is linked
	$(GO) run $(VULN) ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@$(GO) list ./... | while read -r pkg; do \
		for target in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz'); do \
			echo "$$pkg $$target"; \
			$(GO) test -run='^$$' -fuzz="^$$target$$" -fuzztime=$(FUZZTIME) "$$pkg" || exit 1; \
		done; \
	done

.PHONY: cross
cross: ## vet for other systems and machines
	GOOS=linux GOARCH=arm64 $(GO) vet ./...
	GOOS=linux GOARCH=386 $(GO) vet ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...

.PHONY: bench
bench: ## compare with HAProxy and nginx (about two hours; BENCH=-quick tries it)
	$(GO) build -o bin/bench ./bench && bin/bench $(BENCH)

.PHONY: bench-failover
bench-failover: ## break hosts behind all three, write docs/failover.md (45 minutes; root; BENCH=-quick tries it)
	$(GO) build -o bin/bench-failover ./bench/failover && bin/bench-failover $(or $(BENCH),-out docs/failover.md)

.PHONY: bench-cluster
bench-cluster: ## compare failovers with and without a cluster, ROUNDS (10) of each kind (4 minutes; root)
	UNDERSTUDY_RUNS=$(or $(ROUNDS),10) $(GO) test ./e2e -run '^TestClusterCostOfFailover$$' -v -count=1

.PHONY: soak-roles
soak-roles: ## kill, fail back and switch PostgreSQL under load, in ROUNDS rounds (10)
	UNDERSTUDY_RUNS=$(or $(ROUNDS),10) $(GO) test ./e2e -run 'PostgresLosesNoWrite' -v -count=1 -timeout 2h

.PHONY: pictures
pictures: ## draw the pictures of the documentation anew (chromium)
	$(GO) test ./cmd/understudy -run '^TestTopPicture$$' -count=1 -update
	dir=$$(mktemp -d) && UNDERSTUDY_PICTURES=$$dir $(GO) test ./admin -run '^TestPictures$$' -count=1 && mv $$dir/failover-1280-light.png docs/page.png && rm -r $$dir

.PHONY: deb
deb: ## build the Debian packages for amd64 and arm64 into dist/
	$(GO) run ./packaging/build -out dist -version '$(VERSION)' deb

.PHONY: release
release: ## build packages, tarballs, bills of materials and checksums into dist/
	rm -rf dist
	$(GO) run ./packaging/build -out dist -version '$(VERSION)' release

.PHONY: check
check: lint test cross ## what to run before a commit
