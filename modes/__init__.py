"""What `run.py --mode` runs, one file a family of modes."""
