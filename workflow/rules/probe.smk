# Backbones judged: classifiers on their features, or fine-tuned.


rule probe:
    input:
        seals("probe"),


rule probe_artifact:
    input:
        inputs_of("probe"),
    output:
        "artifacts/probe/{id}/artifact.json",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} probe {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
