"""Planning: months of failures in seconds, played through the real decision core on a coarse model of a cluster.

A planner's tool (`understudy simulate`): how much of the time is useful, what is lost to what, how many spares are
needed. The core's rules are not written down a second time here; the cluster is coarse where the costs are (whole
nodes, whole steps, no lost messages). Read `scenario`, `failures`, `play`, `orders`, then `report`.
"""
