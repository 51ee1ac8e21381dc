"""What `entrenar-inspect validate` looks at, one module for each kind of thing.

A check takes an opened model and gives a `Check`; `CHECKS` in `entrenar_inspect.validating` has them in their order.
"""
