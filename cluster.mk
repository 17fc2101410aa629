# The cluster's targets, included by the Makefile. Each is a line: checks and work are in
# selfalign/deploy (`python -m selfalign.deploy --help`), which reads these variables from its
# environment. `make` itself ends with 2 whatever failed; the failure's exit code is in its line.
#
#   STAGE        stage of the pipeline, e.g. align
#   NAMESPACE    of the cluster (default selfalign)
#   RUN          name of an AlignmentRun
#   CONFIG       a run configuration with store: names (selfalign inputs push --out)
#   VALUES       your values: deploy: the platform's; deploy-stage: the stage's (a.yaml:b.yaml)
#   STAGE_VALUES deploy: your values for every stage (a.yaml:b.yaml)
#   VARIANT      gpu or cpu (default gpu)
#   REGISTRY     host/path that images are pushed to; without it they stay on this machine
#   IMAGE_TAG    default: code version and commit
#   PUSH=0       build only           SKIP_BUILD=1  deploy what is in the registry
#   BUILDER      docker, podman, buildah or a command (called with TAG CONTEXT FLAGS...)
#   BUILD_FLAGS  for every build, e.g. "--build-arg PIP_EXTRA_INDEX_URL=<index of CPU torch>"
#   BASE_CPU BASE_GENERATION BASE_TRAINING   other images to build on
#   CHECK_LOGIN=0, CHECK_BUCKET=0            leave a check out
NAMESPACE ?= selfalign
VARIANT ?= gpu
export STAGE NAMESPACE RUN CONFIG VALUES STAGE_VALUES VARIANT REGISTRY IMAGE_TAG PUSH SKIP_BUILD \
  BUILDER BUILD_FLAGS BASE_CPU BASE_GENERATION BASE_TRAINING CHECK_LOGIN CHECK_BUCKET

DEPLOY = $(PYTHON) -m selfalign.deploy
CLUSTER_TOOLS = $(VENV)/.installed-s3+cluster

.PHONY: chart
chart: $(VENV)/.installed-models+s3+cluster+dev ## lint, render and strictly validate the charts with every ci/ and jobs/ file
	@$(DEPLOY) schema --check
	@$(DEPLOY) chart

.PHONY: chart-schema
chart-schema: $(CLUSTER_TOOLS) ## write charts/*/values.schema.json from the configuration models
	@$(DEPLOY) schema

.PHONY: images
images: $(CLUSTER_TOOLS) ## build all images, push with REGISTRY=; VARIANT=cpu for clusters without GPUs
	@$(DEPLOY) image

.PHONY: image
image: $(CLUSTER_TOOLS) ## build one image: STAGE=align, or STAGE=controller
	@$(DEPLOY) image --need-name $(STAGE)

.PHONY: deploy
deploy: $(CLUSTER_TOOLS) ## images, platform and all stages onto the cluster: CONFIG=resolved.yaml REGISTRY= NAMESPACE=
	@$(DEPLOY) platform

.PHONY: deploy-stage
deploy-stage: $(CLUSTER_TOOLS) ## one stage: STAGE= [IMAGE_TAG= NAMESPACE= VALUES=]; with RUN=<id> start and follow it
	@$(DEPLOY) stage
	@$(if $(RUN),$(PYTHON) -m selfalign cluster start-stage $(STAGE) --run $(RUN) --namespace $(NAMESPACE))

.PHONY: run
run: $(CLUSTER_TOOLS) ## start a run on the cluster now [RUN=<its name> CONFIG=<its own configuration>]
	@$(DEPLOY) preflight
	@$(PYTHON) -m selfalign submit --namespace $(NAMESPACE) $(if $(RUN),--name $(RUN)) $(if $(CONFIG),--config $(CONFIG))

.PHONY: nightly-now
nightly-now: $(CLUSTER_TOOLS) ## submit the nightly run now, as its CronJob would
	@$(DEPLOY) nightly-now

.PHONY: status
status: $(CLUSTER_TOOLS) ## runs on the cluster: stage, progress, cause and next action [RUN=]
	@$(DEPLOY) preflight
	@$(PYTHON) -m selfalign cluster status $(RUN) --namespace $(NAMESPACE)

.PHONY: logs
logs: $(CLUSTER_TOOLS) ## follow a stage's log on the cluster: STAGE= [RUN=]
	@$(DEPLOY) preflight --need-stage
	@$(PYTHON) -m selfalign cluster logs $(STAGE) --follow --namespace $(NAMESPACE) $(if $(RUN),--run $(RUN))

.PHONY: undeploy
undeploy: $(CLUSTER_TOOLS) ## remove controller and stages from the cluster; the store and the runs stay
	@$(DEPLOY) undeploy

.PHONY: cluster-test
cluster-test: $(VENV)/.installed-models+s3+cluster+dev ## the tests on the node of KUBECONFIG's cluster, with images of VARIANT=cpu
	@$(PYTHON) -m pytest -v -s -m cluster $(PYTEST_ARGS)
