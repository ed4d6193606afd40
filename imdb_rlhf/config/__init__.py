"""Every key that may be set, typed, with its range beside it. Values and the meaning of keys are in `conf/`.

A key that the chosen algorithm does not use has no field in its `Run`, so Hydra refuses it. `Run.__post_init__` checks
the whole tree when the composed config is turned into these classes, before anything is loaded or written.
"""
