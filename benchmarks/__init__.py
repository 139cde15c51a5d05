"""What AIMA's core and its chain cost, each beside a limit or a peer measured in the same run.

Absolute figures of a shared machine say little; ratios within one run do. Nothing here is imported by the product.
"""
