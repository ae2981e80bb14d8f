"""Losses of other packages under SDPO's argument names, called as they are."""
