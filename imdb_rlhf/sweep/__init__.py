"""Many runs as one: looked for, started side by side, watched, listed, and drawn as a frontier.

    outputs/sweeps/<name>-<hash8>/     sweep.json (what became of each job), logs/, and the frontier's files

The hash is over the jobs, so the same command finds its folder again and runs what is not finished. The runs lie where
they would lie without a sweep.
"""
