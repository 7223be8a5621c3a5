"""What both roles agree on: envelope, ids, errors, Redis keys and scripts, registry, inbox, bus, settings, logs."""
