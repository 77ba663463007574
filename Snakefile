# The whole experiment. workflow/rules/common.smk has the plan, inputs and resources; each stage has a file beside it.
#
#   snakemake                                             make everything that params.yaml needs
#   snakemake --config experiment=experiments/micro.yaml  another experiment
#   snakemake data | pretrain | features | probe | transfer | tables
#                                                         one stage, and what it needs
#   snakemake pages                                       the pages that `make report` joins in one file


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        [manifests(stage) for stage in STAGES if stage != "features"],  # features are made only if a missing probe reads them
        f"results/{EXPERIMENT_NAME}/.published-{PLAN.tables.id}",


include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/probe.smk"
include: "workflow/rules/transfer.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
