"""`python -m imdb_rlhf` and the command `imdb-rlhf`: what `python train.py` is in the repository."""


def main() -> None:
    """Run the command line."""
    from imdb_rlhf.cli import main as run  # not above: the processes of a sweep import this file too

    run()


if __name__ == "__main__":
    main()
