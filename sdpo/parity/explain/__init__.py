"""Which known fault a candidate has, where it first departs, how many faults would show."""
