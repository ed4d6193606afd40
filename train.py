"""One run or a sweep of the experiment: `python train.py algo=dpo beta=0.1`; `--help` lists the groups."""

if __name__ == "__main__":
    from imdb_rlhf.cli import main  # not above: the processes of a sweep import this file too, and need none of it

    main()
