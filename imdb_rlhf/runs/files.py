"""Names of the files in a run's folder. Nothing heavy is imported, so that a sweep can read them without torch."""

from imdb_rlhf.artifacts.files import RUN_ARTIFACTS, RUN_REPORT

CONFIG = "config.yaml"
OVERRIDES = "overrides.json"
ARTIFACTS = RUN_ARTIFACTS

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
EVALUATIONS = "evaluations.parquet"
SAMPLES = "samples.parquet"
CURVE = "curve.parquet"
SCORES = "scores.parquet"
REPORT = RUN_REPORT
