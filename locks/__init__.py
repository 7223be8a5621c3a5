"""What is locked, and the scripts of `make lock` and `make audit`."""
