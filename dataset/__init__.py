"""The data sets: `registry` opens a named split of one; a file a set or a kind of files beside it."""
