# The cluster's targets, included by the Makefile. selfalign/deploy checks and writes the values of
# the releases to .deploy/NAMESPACE/, images/build builds, helm installs. `make` itself ends with 2
# whatever failed; the failure's exit code is in its line. Variables may stand in deploy.mk, which is
# yours (docs/operations.md, Install).
#
#   STAGE        stage of the pipeline, e.g. align
#   NAMESPACE    of the cluster (default selfalign)
#   RUN          name of an AlignmentRun
#   CONFIG       a run configuration with store: names (selfalign inputs push --out)
#   VALUES       your values: deploy: the platform's; deploy-stage: the stage's; deploy-serving: the
#                server's (a.yaml:b.yaml)
#   STAGE_VALUES deploy: your values for every stage (a.yaml:b.yaml)
#   VARIANT      gpu or cpu (default gpu)
#   REGISTRY     host/path that images are pushed to; without it they stay on this machine
#   IMAGE_TAG    default: code version and commit
#   PUSH=0       build only           SKIP_BUILD=1  deploy what is in the registry
#   BUILDER      docker, podman, buildah or a command (called with TAG CONTEXT FLAGS...)
#   BUILD_FLAGS  for every build, e.g. "--network host"
#   PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS   where builds find packages, e.g. CPU torch
#   BASE_CPU BASE_GENERATION BASE_TRAINING   images to build on (default: images/bases.txt, by
#                digest where images are pushed, else by tag)
#   CHECK_HASHES=0, CHECK_LOGIN=0, CHECK_BUCKET=0   leave a check out
#   HELM_PUSH_FLAGS   release: for `helm push`, e.g. --plain-http
#   HELM         path of Helm 4 (default: helm on PATH, else the engine in helm-python-sdk)
-include deploy.mk
NAMESPACE ?= selfalign
VARIANT ?= gpu
export STAGE NAMESPACE RUN CONFIG VALUES STAGE_VALUES VARIANT REGISTRY IMAGE_TAG PUSH BUILDER \
  BUILD_FLAGS PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS BASE_CPU BASE_GENERATION \
  BASE_TRAINING CHECK_HASHES CHECK_LOGIN CHECK_BUCKET

# An environment for development has all of it.
CLUSTER_TOOLS := $(or $(wildcard $(VENV)/.installed-models+s3+cluster+dev),\
  $(VENV)/.installed-s3+cluster$(if $(HELM)$(shell command -v helm),,+helm))
HELM ?= $(or $(shell command -v helm),$(PYTHON) -m selfalign.deploy.helm)
DEPLOY = $(PYTHON) -m selfalign.deploy
STAGES = $(patsubst jobs/%.yaml,%,$(wildcard jobs/*.yaml))
RELEASES = .deploy/$(NAMESPACE)
build = IMAGE_TAG=$${IMAGE_TAG:-$$($(DEPLOY) tag)}; export IMAGE_TAG; images/build $(1)
# What is pushed for a deployment is deployed by digest.
build_for_deploy = $(call unless_skipped,DIGESTS=$(CURDIR)/$(RELEASES)/digests.txt; rm -f $$DIGESTS; \
  export DIGESTS; { $(call build,$(1)); } && $(DEPLOY) pin --out $(RELEASES) --digests $$DIGESTS)
unless_skipped = $(if $(filter-out 0 false no,$(SKIP_BUILD)),true,$(1))
install = $(HELM) upgrade --install $(1) charts/$(2) --namespace $(NAMESPACE) -f $(RELEASES)/$(1).yaml

.PHONY: chart
chart: $(VENV)/.installed-models+s3+cluster+dev ## lint, render and strictly validate the charts with every ci/ and jobs/ file
	@$(DEPLOY) schema --check
	@$(PYTHON) -m pytest -q -m "not cluster" tests/charts

.PHONY: chart-schema
chart-schema: $(CLUSTER_TOOLS) ## write charts/*/values.schema.json and the bounds in the AlignmentRun resource, from values.yaml and the configuration models
	@$(DEPLOY) schema

.PHONY: images
images: $(CLUSTER_TOOLS) ## build all images, push with REGISTRY=; VARIANT=cpu for clusters without GPUs
	@$(call build)

.PHONY: image
image: $(CLUSTER_TOOLS) ## build one image: STAGE=align, or STAGE=controller
	@$(call build,$(or $(STAGE),$(error STAGE is missing; give one of: $(STAGES) controller)))

# Tools of a release alone: cyclonedx-bom's pins exclude those of constraints.txt.
.venv-release/.installed: cluster.mk
	@test -x .venv-release/bin/python || $(PYTHON311) -m venv .venv-release
	@.venv-release/bin/python -m pip install --quiet --disable-pip-version-check build cyclonedx-bom uv
	@touch $@

EXTRAS_OF_IMAGES = s3 store-signing models openai cluster notify signing deepspeed qlora
.PHONY: hashes
hashes: .venv-release/.installed ## images/hashes.txt anew, after a change of the constraints
	@# builds of an index of its own (+cpu) stay as they are written
	@{ head -3 images/hashes.txt; grep '^[a-z].*+' images/hashes.txt; .venv-release/bin/uv pip compile \
	  --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 \
	  --python-platform x86_64-unknown-linux-gnu -c constraints.txt -c images/constraints-images.txt \
	  $(EXTRAS_OF_IMAGES:%=--extra=%) pyproject.toml; } >.hashes.txt && mv .hashes.txt images/hashes.txt

.PHONY: release
release: $(CLUSTER_TOOLS) .venv-release/.installed ## wheel, sdist, SBOMs, images and charts of this version in dist/; REGISTRY=host/path pushes the last two [PUSH=0 SKIP_BUILD=1]
	@rm -rf dist && mkdir dist
	@.venv-release/bin/python -m build --outdir dist . >/dev/null
	@# what a machine or the controller gets of it, as pinned
	@$(PYTHON311) -m venv dist/.environment
	@dist/.environment/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt "$$(ls $(CURDIR)/dist/*.whl)[s3,cluster]"
	@.venv-release/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  -o dist/selfalign.cdx.json dist/.environment/bin/python
	@rm -rf dist/.environment
	@IMAGE_TAG=$${IMAGE_TAG:-$$($(DEPLOY) version)}; DIGESTS=$(CURDIR)/dist/images.txt; \
	  BOMS=$(CURDIR)/dist; export IMAGE_TAG DIGESTS BOMS; $(call unless_skipped,images/build)
	@$(DEPLOY) release --out dist/charts --digests dist/images.txt >/dev/null
	@for chart in dist/charts/*; do $(HELM) package $$chart --destination dist >/dev/null; done
	@rm -rf dist/charts
	@$(if $(REGISTRY),$(if $(filter 0 false no,$(PUSH)),,for chart in dist/*.tgz; do \
	  $(HELM) push $$chart oci://$(REGISTRY:%/=%)/charts $(HELM_PUSH_FLAGS); done))
	@ls dist

.PHONY: namespace
namespace: $(CLUSTER_TOOLS) ## make NAMESPACE, enforcing Pod Security restricted; for a Secret that must be there before deploy
	@$(DEPLOY) namespace

.PHONY: deploy
deploy: $(CLUSTER_TOOLS) ## images, platform and all stages onto the cluster: CONFIG=resolved.yaml REGISTRY= NAMESPACE=
	@$(HELM) --help >/dev/null
	@$(DEPLOY) prepare --out $(RELEASES)
	@$(call build_for_deploy)
	@$(DEPLOY) namespace
	@$(call install,selfalign,selfalign) >$(RELEASES)/notes.txt
	@for stage in $(STAGES); do \
	  $(call install,selfalign-$$stage,stage) >/dev/null; echo "deployed selfalign-$$stage"; done
	@cat $(RELEASES)/notes.txt

.PHONY: deploy-stage
deploy-stage: $(CLUSTER_TOOLS) ## one stage: STAGE= [IMAGE_TAG= NAMESPACE= VALUES=]; with RUN=<id> start and follow it
	@$(HELM) --help >/dev/null
	@$(DEPLOY) prepare --out $(RELEASES) --stage "$(STAGE)"
	@$(call build_for_deploy,$(STAGE))
	@$(DEPLOY) namespace
	@$(call install,selfalign-$(STAGE),stage)
	@$(if $(RUN),$(PYTHON) -m selfalign start-stage $(STAGE) --run $(RUN) --namespace $(NAMESPACE))

.PHONY: deploy-serving
deploy-serving: $(CLUSTER_TOOLS) ## serve the promoted model on the cluster [IMAGE_TAG= NAMESPACE= VALUES=]
	@$(HELM) --help >/dev/null
	@$(DEPLOY) prepare --out $(RELEASES) --serving
	@$(call build_for_deploy,align promote)
	@$(DEPLOY) namespace
	@$(call install,selfalign-serving,serving)

.PHONY: run
run: $(CLUSTER_TOOLS) ## start a run on the cluster now [RUN=<its name> CONFIG=<its own configuration>]
	@$(DEPLOY) preflight
	@$(PYTHON) -m selfalign submit --namespace $(NAMESPACE) $(if $(RUN),--name $(RUN)) $(if $(CONFIG),--config $(CONFIG))

.PHONY: nightly-now
nightly-now: $(CLUSTER_TOOLS) ## submit the nightly run now, as its CronJob would
	@$(DEPLOY) preflight
	@kubectl -n $(NAMESPACE) create job selfalign-nightly-$$(date -u +%Y%m%d-%H%M%S) --from=cronjob/selfalign-nightly

.PHONY: status
status: $(CLUSTER_TOOLS) ## runs on the cluster: stage, progress, cause and next action [RUN=]
	@$(DEPLOY) preflight
	@$(PYTHON) -m selfalign status $(RUN) --namespace $(NAMESPACE)

.PHONY: logs
logs: $(CLUSTER_TOOLS) ## follow a stage's log on the cluster: STAGE= [RUN=]
	@$(DEPLOY) preflight --need-stage
	@$(PYTHON) -m selfalign logs $(STAGE) --follow --namespace $(NAMESPACE) $(if $(RUN),--run $(RUN))

.PHONY: undeploy
undeploy: $(CLUSTER_TOOLS) ## remove controller, stages and serving from the cluster; the store and the runs stay
	@$(DEPLOY) preflight
	@for release in selfalign selfalign-serving $(STAGES:%=selfalign-%); do \
	  $(HELM) uninstall $$release --namespace $(NAMESPACE) --ignore-not-found; done
	@echo "kept: the store, the AlignmentRun resource and these runs (kubectl -n $(NAMESPACE) delete" \
	  "alignmentruns --all removes them):"
	@kubectl -n $(NAMESPACE) get alignmentruns --ignore-not-found

.PHONY: cluster-test
cluster-test: $(VENV)/.installed-models+s3+cluster+dev ## the tests on the node of KUBECONFIG's cluster, with images of VARIANT=cpu
	@$(PYTHON) -m pytest -v -s -m cluster $(PYTEST_ARGS)
