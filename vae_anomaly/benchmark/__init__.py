"""Benchmarks: ``vae-anomaly benchmark``, detectors beside simple methods on the same splits.

* :mod:`measuring`: a :class:`Task` is one method on one split of one data set; what it gives is a line of the CSV file;
* :mod:`methods`: our detector and the simple methods, each a function of training data and a seed;
* :mod:`mnist`, :mod:`logs`, :mod:`context`, :mod:`generation`, :mod:`adbench`: a protocol each, which makes the tasks;
* :mod:`results`: the table of the means, and the CSV file; :mod:`comparison`: ranks, tests and the page;
* :mod:`commands`: the command line.
"""
