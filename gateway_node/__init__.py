"""The gateway node: holds WebSocket connections, delivers the records of its own topic, sends clients' frames on."""
