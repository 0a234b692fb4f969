"""pagerank: rank the vertices of a random graph with igraph.

Ranks are rounded before they are summed up, so that the last bits do not matter.
"""

import random

import igraph

ARGUMENTS = {"vertices": (5000, 2, 1_000_000), "degree": (8, 1, 64)}


def run(seed, vertices, degree):
    dice = random.Random(seed)
    # The product of two draws favours low numbers: a few vertices become hubs.
    edges = [(vertex, dice.randrange(vertices) * dice.randrange(vertices) // vertices)
             for vertex in range(vertices) for _ in range(degree)]
    ranks = igraph.Graph(n=vertices, edges=edges, directed=True).pagerank()
    rounded = [round(rank * vertices * 1000) for rank in ranks]
    best = max(range(vertices), key=lambda vertex: (rounded[vertex], -vertex))
    return ",".join(map(str, rounded)).encode(), {"edges": len(edges), "best": best}
