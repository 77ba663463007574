# The whole experiment. Plan, inputs and resources are in workflow/rules/common.smk, a rule for each stage beside it.
#
#   snakemake                                             everything of params.yaml
#   snakemake --config experiment=experiments/micro.yaml  of another experiment
#   snakemake data | pretrain | features | probe | transfer | tables
#                                                         one phase, and what it needs
#   snakemake pages                                       what `make report` shows


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        [manifests(stage) for stage in STAGES if stage != "features"],  # only probes need those
        f"results/{EXPERIMENT_NAME}/.published-{PLAN.tables.id}",


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/transfer.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
