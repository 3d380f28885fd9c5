"""The `sapwood` command: starts the whole set on one machine, talks to it."""
