"""The sapwood command: starts the set on one machine, talks to it."""
