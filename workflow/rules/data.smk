# Sources become verified stores of images.


rule data:
    input:
        seals("data"),


rule data_artifact:
    input:
        inputs_of("data"),
    output:
        "artifacts/data/{id}/artifact.json",
    threads: EXECUTION.threads
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        "{MLS} data {wildcards.id} --experiment {EXPERIMENT:q}"
