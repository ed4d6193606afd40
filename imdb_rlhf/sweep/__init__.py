"""A sweep: many runs that are started side by side, watched, listed, and drawn as a frontier.

    outputs/sweeps/<name>-<hash8>/     sweep.json (the state of each job), logs/, and the frontier's files

The hash is over the jobs, so the same command finds its folder again and runs the jobs that are not finished. The runs'
folders are where they would be without a sweep.
"""
