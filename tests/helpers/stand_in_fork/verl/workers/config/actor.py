"""Stand-in: where the fork defines the actor's settings."""
