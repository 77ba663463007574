# Backbones evaluated by classification: classifiers on their features, or fine-tuning.


rule probe:
    input:
        manifests("probe"),


rule probe_artifact:
    input:
        inputs_of("probe"),
    output:
        "artifacts/probe/{id}/artifact.json",
    log:
        "logs/probe/{id}.log",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("probe")
