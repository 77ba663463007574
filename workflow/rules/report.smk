# The pages of Snakemake's report: `make report`, or mls report, then snakemake --report FILE.html pages

PAGES = f"report/{EXPERIMENT_NAME}-{PLAN.tables.id}"

# For the captions, which can read only the config.
config["shown"] = {
    "experiment": EXPERIMENT_NAME,
    "file": EXPERIMENT,
    "tables": PLAN.tables.id,
}


rule pages:
    input:
        ancient(
            [
                path
                for stage in ("pretrain", "probe", "transfer", "tables")
                for path in manifests(stage)
            ]
        ),
    output:
        report(
            directory(f"{PAGES}/tables"),
            patterns=["{name}.html"],
            category="Tables",
            labels={"table": "{name}"},
            caption="../report/table.rst",
        ),
        report(
            directory(f"{PAGES}/figures"),
            patterns=["{name}.png"],
            category="Figures",
            labels={"figure": "{name}"},
            caption="../report/figure.rst",
        ),
        report(
            f"{PAGES}/provenance.html",
            category="Provenance",
            labels={"page": "every number"},
            caption="../report/provenance.rst",
        ),
        report(
            f"{PAGES}/artifacts.html",
            category="Provenance",
            labels={"page": "every artifact"},
            caption="../report/artifacts.rst",
        ),
        report(
            f"{PAGES}/anchors.html",
            category="Provenance",
            labels={"page": "what others report"},
            caption="../report/anchors.rst",
        ),
        report(
            f"{PAGES}/graph.html",
            category="Provenance",
            labels={"page": "graph of artifacts"},
            caption="../report/graph.rst",
        ),
    message:
        "pages of the report of {EXPERIMENT}"
    shell:
        "exec {MLS} report --experiment {EXPERIMENT:q}"
