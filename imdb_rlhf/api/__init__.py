"""The Python API, documented in docs/python.md; `imdb_rlhf/__init__.py` exports it, loaded when it is used."""
