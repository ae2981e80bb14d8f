"""The real functions of a checkout of lasgroup/SDPO, run on given inputs on a CPU."""
