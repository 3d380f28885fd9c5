"""What two or more services must agree on: messages, streams, settings, telemetry, errors."""
