# Everything is built from Go modules and Debian packages; see hack/versions.env for what and README.md for the two commands that matter.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
include hack/versions.env

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/zuulbuild
TOOLS := $(CACHE)/tools
CONTROLLER_GEN := $(TOOLS)/controller-gen-$(CONTROLLER_TOOLS_VERSION)/controller-gen
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)/golangci-lint
LOCALCLUSTER := go run ./hack/localcluster/cmd
VERSION ?= $(shell awk '/^appVersion:/ { print $$2 }' charts/zuulbuild/Chart.yaml)
HELM_DOCS := $(TOOLS)/helm-docs-$(HELM_DOCS_VERSION)/helm-docs
HELM := $(TOOLS)/helm-$(HELM_VERSION)/helm
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)/govulncheck
# The vulnerabilities that lint looks for: Go's database as it was at one version, so that the same commit passes, or fails, every time.
VULNDB := $(TOOLS)/vulndb-$(VULNDB_VERSION)
VULNERABILITIES ?= file://$(VULNDB)
# The age of all that is released: that of the commit.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# The versions of Kubernetes that kubernetes-versions tries.
comma := ,
VERSIONS ?= $(subst $(comma), ,$(OLDER_KUBERNETES_VERSIONS)) $(KUBERNETES_VERSION)
PICTURE ?= dist/dashboard.png
# How many packages are tested at once: their tests wait more than they compute.
PACKAGES := $(shell processors=$$(nproc); echo $$((processors > 4 ? processors : 4)))
MEASURED := ZUULBUILD_REQUIRE_APISERVER=1 ZUULBUILD_REQUIRE_GEARMAND=1 go test -count=1 -v

.PHONY: help
help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ The program

.PHONY: build
build: ## Build bin/zuulbuild
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o bin/ .

.PHONY: image
image: ## Build dist/zuulbuild-image.tar, the container image, without Docker; VERSION=… for another tag
	go run ./hack/image --version $(VERSION) --output dist/zuulbuild-image.tar

.PHONY: release
release: $(HELM) ## Build dist/zuulbuild-VERSION, all that is released, the same bytes each time; VERSION=… for another than the chart's
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) go run ./hack/release --version $(VERSION) --helm $(HELM) --output dist/zuulbuild-$(VERSION) \
		$(if $(IMAGE),--image $(IMAGE)) $(if $(RELEASE_URL),--url $(RELEASE_URL))

.PHONY: generate
generate: $(CONTROLLER_GEN) ## Write the generated Go code
	$(CONTROLLER_GEN) object paths=./api/...

.PHONY: manifests
manifests: $(CONTROLLER_GEN) $(HELM_DOCS) ## Write the CustomResourceDefinitions, the operator's role, and what chart and components have of both
	$(CONTROLLER_GEN) crd:generateEmbeddedObjectMeta=true paths=./api/... output:crd:dir=config/crd
	go run ./hack/crdtrim config/crd
	$(CONTROLLER_GEN) rbac:roleName=zuulbuild-operator paths=./controllers/... output:rbac:dir=config/rbac
	go run ./hack/chart
	$(HELM_DOCS) --log-level warning --chart-search-root charts --sort-values-order file

##@ Tests

.PHONY: test
test: verify unit integration e2e ## Run everything: checks, unit, API server and end-to-end tests

.PHONY: unit
unit: ## Run the tests that need nothing but Go (seconds)
	ZUULBUILD_SKIP_APISERVER=1 go test -race -short ./...

.PHONY: packages
packages: ## Install the Debian packages the tests and the local cluster need (as root)
	$(LOCALCLUSTER) packages

.PHONY: integration
integration: packages ## Run the tests against a real API server and a real gearmand
	$(LOCALCLUSTER) assets >/dev/null
	$(LOCALCLUSTER) tools helm helm-unittest promtool
	ZUULBUILD_REQUIRE_APISERVER=1 ZUULBUILD_REQUIRE_GEARMAND=1 go test -race -count=1 -p $(PACKAGES) -timeout 20m ./...

.PHONY: e2e
e2e: packages ## Run the tests against a real cluster, with real containers
	$(LOCALCLUSTER) tools
	$(LOCALCLUSTER) tools helm
	ZUULBUILD_E2E=1 ZUULBUILD_REQUIRE_GEARMAND=1 go test -race -count=1 -timeout 30m ./hack/localcluster/... ./test/e2e/...

.PHONY: kubernetes-versions
kubernetes-versions: $(VERSIONS:%=on-kubernetes-%) ## Try the chart and the controllers on older API servers, too; VERSIONS="1.34 1.36.1" for other ones

on-kubernetes-%:
	@echo "On Kubernetes $*:"
	ZUULBUILD_KUBERNETES=$* $(LOCALCLUSTER) assets >/dev/null
	$(LOCALCLUSTER) tools helm helm-unittest promtool
	ZUULBUILD_KUBERNETES=$* ZUULBUILD_REQUIRE_APISERVER=1 go test -count=1 -timeout 20m \
		./hack/apiserver ./api/... ./test/chart ./controllers ./buildnumber ./replicas

.PHONY: record
record: packages ## Make all that can become of a Pod happen on a real cluster, and write down the Pods and docs/cases.md (half an hour)
	ZUULBUILD_E2E=1 ZUULBUILD_RECORD=1 ZUULBUILD_REQUIRE_GEARMAND=1 go test -count=1 -v -timeout 1h -run '^TestPods$$' ./test/e2e

.PHONY: load
load: packages build ## Measure 2,000 builds in flight; LOAD=… for another number
	$(LOCALCLUSTER) assets >/dev/null
	ZUULBUILD_LOAD=$(or $(LOAD),2000) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) -timeout 20m -run '^TestLoad$$' ./test/conformance

.PHONY: soak
soak: packages build ## Send 10,000 uniques through losses of every kind; SOAK=… for another number, SEED=… for those of an earlier run
	$(LOCALCLUSTER) assets >/dev/null
	ZUULBUILD_SOAK=$(or $(SOAK),10000) ZUULBUILD_SEED=$(SEED) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) \
		-timeout 4h -run '^TestSoak$$' ./test/conformance

.PHONY: upgrade
upgrade: packages build ## Replace the leading replica three times while 200 builds run and 10 a second arrive; UPGRADE=… for another number
	$(LOCALCLUSTER) assets >/dev/null
	ZUULBUILD_UPGRADE=$(or $(UPGRADE),200) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) \
		-timeout 20m -run '^TestConformance$$/^rolling-upgrade$$' ./test/conformance

.PHONY: helm-upgrade
helm-upgrade: packages build ## Upgrade a release of the chart three times and drain a node while 200 builds run and 10 a second arrive; HELM_UPGRADE=… for another number
	ZUULBUILD_E2E=1 ZUULBUILD_HELM_UPGRADE=$(or $(HELM_UPGRADE),200) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) \
		-timeout 1h -run '^TestHelmUpgrade$$' ./test/e2e

.PHONY: scale
scale: packages build ## Run 1,000 builds under limits while the operator is killed every few seconds; SCALE=… for another number, SEED=…
	ZUULBUILD_E2E=1 ZUULBUILD_SCALE=$(or $(SCALE),1000) ZUULBUILD_SEED=$(SEED) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) \
		-timeout 1h -run '^TestScale$$' ./test/e2e

.PHONY: dashboard
dashboard: build ## Draw the dashboard of the chart from what Prometheus sees of a run, with chromium; PICTURE=… for another file than dist/dashboard.png
	$(LOCALCLUSTER) packages chromium
	$(LOCALCLUSTER) assets >/dev/null
	$(LOCALCLUSTER) tools prometheus
	mkdir -p $(dir $(PICTURE))
	ZUULBUILD_DASHBOARD=$(abspath $(PICTURE)) ZUULBUILD_PROGRAM=$(CURDIR)/bin/zuulbuild $(MEASURED) -timeout 10m -run '^TestDashboard$$' ./test/conformance

.PHONY: verify
verify: lint generate manifests ## Check style, and that generated files are as the sources say
	@changed=$$(git status --porcelain -- api config charts); if [ -n "$$changed" ]; then \
		echo "Generated files are stale; commit what 'make generate manifests' wrote:"; echo "$$changed"; exit 1; fi

.PHONY: lint
lint: licences vulnerabilities $(GOLANGCI_LINT) ## Check style, licences and vulnerabilities
	$(GOLANGCI_LINT) run --allow-serial-runners

.PHONY: licences
licences: ## Check that every module in the program has a licence that lets us pass it on
	@go run ./hack/release --licences >/dev/null

.PHONY: vulnerabilities
vulnerabilities: $(GOVULNCHECK) $(VULNDB) ## Look for known vulnerabilities that this code can reach; VULNERABILITIES=https://vuln.go.dev for those of today
	go run ./hack/vulnerabilities --govulncheck $(GOVULNCHECK) --db $(VULNERABILITIES)

##@ A cluster

.PHONY: cluster-up
cluster-up: ## Start a real Kubernetes on this machine (as root); NAME=… for another beside it
	$(LOCALCLUSTER) up $(if $(NAME),--name $(NAME))

.PHONY: cluster-down
cluster-down: ## Stop it and clear away all it left
	$(LOCALCLUSTER) down $(if $(NAME),--name $(NAME))

.PHONY: demo
demo: build ## Start a cluster, Gearman and zuulbuild, and send builds as Zuul would; KEEP=1 leaves it running
	go run ./hack/demo $(if $(KEEP),--keep) $(if $(GEARMAN),--gearman $(GEARMAN))

##@ Tools

$(CONTROLLER_GEN):
	@echo "Building controller-gen $(CONTROLLER_TOOLS_VERSION)"
	GOBIN=$(@D) go install sigs.k8s.io/controller-tools/cmd/controller-gen@$(CONTROLLER_TOOLS_VERSION)

$(HELM_DOCS):
	@echo "Building helm-docs $(HELM_DOCS_VERSION)"
	GOBIN=$(@D) go install github.com/norwoodj/helm-docs/cmd/helm-docs@$(HELM_DOCS_VERSION)

$(HELM):
	$(LOCALCLUSTER) tools helm

$(GOVULNCHECK):
	@echo "Building govulncheck $(GOVULNCHECK_VERSION)"
	GOBIN=$(@D) go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)

# The module of the database has the reports; govulncheck wants an index beside them.
$(VULNDB):
	@echo "Indexing Go's vulnerabilities as of $(VULNDB_VERSION)"
	rm -rf $@.part
	mkdir -p $@.part
	GOBIN=$@.part/bin go install golang.org/x/vulndb/cmd/indexdb@$(VULNDB_VERSION)
	$@.part/bin/indexdb -vulns "$$(go env GOMODCACHE)/golang.org/x/vulndb@$(VULNDB_VERSION)/data/osv" -out $@.part/db
	mv $@.part/db $@
	rm -rf $@.part

$(GOLANGCI_LINT):
	@echo "Building golangci-lint $(GOLANGCI_LINT_VERSION); this takes some minutes, once"
	GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
