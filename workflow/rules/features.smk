# Frozen features of a backbone, extracted once for every probe of them.


rule features:
    input:
        seals("features"),


rule features_artifact:
    input:
        inputs_of("features"),
    output:
        "artifacts/features/{id}/artifact.json",
    threads: EXECUTION.threads
    resources:
        gpu=gpu,
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} features {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
