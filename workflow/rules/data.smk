# Sources become verified stores of images; those of local photos have a folder that DVC does not track.


rule data:
    input:
        seals("data"),


rule data_artifact:
    output:
        "artifacts/{folder}/{id}/artifact.json",
    wildcard_constraints:
        folder="data|photos",
    threads: EXECUTION.threads
    resources:
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} data {wildcards.id} --experiment {EXPERIMENT:q} --attempt {resources.attempt}"
