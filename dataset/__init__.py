"""The data sets: a file a set, with its `SPECS` and its `read()`; `registry` lists them and opens a named split."""
