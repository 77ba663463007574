# Tables and figures from every metrics.json, and results/<experiment>/, where they are published.


rule tables:
    input:
        rules.all.input,


rule tables_artifact:
    input:
        inputs_of("tables"),
    output:
        "artifacts/tables/{id}/artifact.json",
    log:
        "logs/tables/{id}.log",
    resources:
        attempt=attempt,
    params:
        name=name_of,
    message:
        "{params.name}"
    shell:
        stage_command("tables")


rule publish:
    input:
        ancient(f"artifacts/tables/{PLAN.tables.id}/artifact.json"),
    output:
        "results/{experiment}/.published-{id}",
    message:
        "publish results/{wildcards.experiment}"
    shell:
        "exec {MLS} publish --experiment {EXPERIMENT:q}"
