"""From a value to a status, and from statuses to a verdict."""
