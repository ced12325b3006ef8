"""Graph walks by the rules of openai/graphwalks: a graph as a list of edges, and a set of its nodes to be named.

bfs: the nodes that are reached from one in exactly so many steps, without itself. parents: those with an edge to one.
An answer is the list after "Final Answer:", and its score is the F1 of the two sets (1 where both are empty), as there
(https://huggingface.co/datasets/openai/graphwalks). Ours: the graphs, which are random and as large as fits; that the
answer's beginning, "Final Answer: [", is part of the prompt, so that models without a chat template can be asked; and
that the right set has one to four nodes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.tasks.documents import Document, Encoder
from pipelines.tasks.kinds import Measure
from pipelines.tasks.questions import Question, QuestionTask, fluency

RULES = (
    "You will be given a graph as a list of directed edges. All nodes are at least degree 1. You will also get a "
    "description of an operation to perform on the graph.\n"
    "Your job is to execute the operation on the graph and return the set of nodes that the operation results in. If "
    "asked for a breadth-first search (BFS), only return the nodes that are reachable at that depth, do not return the "
    "starting node. If asked for the parents of a node, only return the nodes that have an edge leading to the given "
    "node, do not return the given node itself.\n"
)
EXAMPLE = (
    "\nHere is an example:\nThe graph has the following edges:\n"
    "uvwx -> alke\nabcd -> uvwx\nabcd -> efgh\nefgh -> uvwx\n\n"
    "Operation:\nPerform a BFS from node abcd with depth 1.\nFinal Answer: [uvwx, efgh]\n\n"
    "Operation:\nFind the parents of node uvwx.\nFinal Answer: [abcd, efgh]\n\n"
    "Here is the graph to operate on:\nThe graph has the following edges:\n"
)
DEGREE = 2
"""Edges from every node, about: of as many nodes as half the edges, each edge joins two at random."""

LEAST = 10
"""Edges, at least."""
ROOM = 64
DEPTH = 2
"""Steps of a search, at most."""

Edge = tuple[str, str]


def reached(edges: Iterable[Edge], node: str, steps: int) -> set[str]:
    """The nodes at exactly this many steps from one, by the shortest way.

    >>> sorted(reached([("a", "b"), ("b", "c"), ("a", "c"), ("c", "d")], "a", 2))
    ['d']
    """
    following: dict[str, set[str]] = {}
    for start, end in edges:
        following.setdefault(start, set()).add(end)
    seen, here = {node}, {node}
    for _ in range(steps):
        here = {end for start in here for end in following.get(start, ())} - seen
        seen |= here
    return here


def parents(edges: Iterable[Edge], node: str) -> set[str]:
    """The nodes with an edge to one, without itself."""
    return {start for start, end in edges if end == node and start != node}


def measure(row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """F1 of the nodes named up to the closing bracket; 1 where none is named and none is right."""
    (answer,) = results
    named = {name.strip(" '\"") for name in answer.partition("]")[0].split(",")} - {""}
    right = set(row["document"].fact("answers"))
    share = 2 * len(named & right) / (len(named) + len(right)) if named or right else 1.0
    return {"f1": share, **fluency(answer)}


class GraphWalks(QuestionTask):
    name = "graph_walks"
    asks = ("bfs", "parents")
    headlines = ("f1",)
    measure = Measure("f1", lower=False)
    options: Mapping[str, Any] = {"ask": "all", "questions": 8}

    def kind_of(self, options: Mapping[str, Any]) -> str:
        return "generate"

    def pose(
        self, ask: str, seed: str, size: int, length: int, options: Mapping[str, Any], encode: Encoder
    ) -> Question:
        dice = random.Random(seed)
        edges = _graph(dice, LEAST + size)
        nodes = sorted({node for edge in edges for node in edge})
        steps = dice.randint(1, DEPTH)
        right: set[str] = set()
        for node in dice.sample(nodes, len(nodes)):  # the first with few enough to be named
            right = reached(edges, node, steps) if ask == "bfs" else parents(edges, node)
            if 1 <= len(right) <= 4:
                break
        operation = f"Perform a BFS from node {node} with depth {steps}."
        if ask == "parents":
            operation = f"Find the parents of node {node}."
        body = "".join(f"{start} -> {end}\n" for start, end in edges)
        prompt = f"{RULES}{EXAMPLE}{body}\nOperation:\n{operation}\nFinal Answer: ["
        return Question(prompt, tuple(sorted(right)), room=ROOM, facts=(("edges", len(edges)),))

    def scores(self, each: Document, answer: Any) -> dict[str, float]:
        return measure({"document": each}, [answer])

    def yaml(self, options: Mapping[str, Any]) -> str:
        return self.name


def _graph(dice: random.Random, count: int) -> list[Edge]:
    names = [f"{dice.getrandbits(40):010x}" for _ in range(max(4, count // DEGREE))]
    edges = [(dice.choice(names), dice.choice(names)) for _ in range(count)]
    return list(dict.fromkeys(edge for edge in edges if edge[0] != edge[1]))


KIND = GraphWalks()
