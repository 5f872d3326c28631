"""What went wrong, once a check has failed."""
