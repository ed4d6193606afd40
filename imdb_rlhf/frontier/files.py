"""Names of the files in a frontier's or a sweep's folder. Nothing heavy is imported, so that a sweep can read them.

The sweep writes its own state; that file's name is here because the frontier finds the sweep's runs in it.
"""

JSON = "frontier.json"
CSV = "frontier.csv"
SVG = "frontier.svg"
PNG = "frontier.png"
PDF = "frontier.pdf"
NATS = ("nats.svg", "nats.pdf", "nats.png")
REPORT = "report.html"
SWEEP_STATE = "sweep.json"
