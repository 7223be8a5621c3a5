"""The WebSocket core against the Autobahn test suite."""
