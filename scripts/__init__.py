"""Python scripts run as `python -m scripts.NAME` from the folder of the suite; shell scripts from any folder."""
