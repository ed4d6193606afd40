"""One run or a sweep of the experiment: `python train.py algo=dpo beta=0.1`; `--help` lists the groups."""

from imdb_rlhf.cli import main

if __name__ == "__main__":
    main()
