"""Communities of entities: hierarchical Leiden (Traag et al. 2019), as GraphRAG runs it."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ragtuned_pipeline import tables
from ragtuned_pipeline.ids import content_id
from ragtuned_pipeline.settings import GraphSettings

_TITLE_NAMES = 3

_Edge = tuple[str, str, float]


@dataclass(frozen=True)
class _Cluster:
    level: int
    parent: int  # index of the parent cluster, -1 for a root
    members: tuple[int, ...]  # rows of entities, ascending


def cluster(entities: pa.Table, relationships: pa.Table, settings: GraphSettings) -> pa.Table:
    """Return the table `communities`: level 0 holds the roots, children split them further.

    Every component of the graph is clustered. An entity without relationships is in no community.
    A cluster above `settings.max_cluster_size` stays whole where Leiden cannot split it. Leiden
    sees undirected edges, (lo, hi) by entity id and sorted, parallel and reversed ones summed:
    its result depends on their order. Communities are numbered by level, then size, then title.
    """
    ids = entities["id"].to_pylist()
    row = {identity: i for i, identity in enumerate(ids)}
    source = np.array([row[i] for i in relationships["source_id"].to_pylist()], dtype=np.int64)
    target = np.array([row[i] for i in relationships["target_id"].to_pylist()], dtype=np.int64)
    if len(source) == 0:
        return tables.table("communities", [])
    clusters = _leiden(_edges(relationships), row, settings)
    inner = _inner_edges(clusters, source, target, len(ids))
    titles = entities["title"].to_pylist()
    names = [
        _title(each.members, Counter([*source[held], *target[held]]), titles)
        for each, held in zip(clusters, inner, strict=True)
    ]
    order = sorted(
        range(len(clusters)),
        key=lambda i: (
            clusters[i].level,
            -len(clusters[i].members),
            names[i],
            [ids[m] for m in clusters[i].members],
        ),
    )
    number = {old: new for new, old in enumerate(order)} | {-1: -1}
    children: dict[int, list[int]] = defaultdict(list)
    for i in order:
        children[clusters[i].parent].append(number[i])
    edge_ids = relationships["id"].to_pylist()
    edge_units = relationships["text_unit_ids"].to_pylist()
    rows: list[dict[str, Any]] = []
    for i in order:
        each = clusters[i]
        members = [ids[m] for m in each.members]
        rows.append(
            {
                "id": content_id("com", str(each.level), *sorted(members)),
                "human_readable_id": number[i],
                "community": number[i],
                "level": each.level,
                "parent": number[each.parent],
                "children": children[i],
                "title": names[i],
                "entity_ids": members,
                "relationship_ids": [edge_ids[e] for e in inner[i]],
                "text_unit_ids": sorted({unit for e in inner[i] for unit in edge_units[e]}),
                "period": None,
                "size": len(members),
            }
        )
    return tables.table("communities", rows)


def _edges(relationships: pa.Table) -> list[_Edge]:
    """Return the undirected edges (lo, hi, weight), sorted, weights of the same pair summed."""
    a, b = relationships["source_id"], relationships["target_id"]
    ordered = pc.less_equal(a, b)
    pairs = pa.table(
        {
            "lo": pc.if_else(ordered, a, b),
            "hi": pc.if_else(ordered, b, a),
            "weight": relationships["weight"],
        }
    )
    # One thread: a float sum must not depend on which thread came first.
    summed = pairs.group_by(["lo", "hi"], use_threads=False).aggregate([("weight", "sum")])
    summed = summed.sort_by([("lo", "ascending"), ("hi", "ascending")])
    return list(
        zip(
            summed["lo"].to_pylist(),
            summed["hi"].to_pylist(),
            summed["weight_sum"].to_pylist(),
            strict=True,
        )
    )


def _leiden(edges: list[_Edge], row: dict[str, int], settings: GraphSettings) -> list[_Cluster]:
    """Return the clusters, parents before their children.

    Each component of the graph and each cluster is split by a run of its own, which sees nothing
    but its edges and starts from the seed: where an edit leaves these edges alone, it leaves the
    cluster's parts alone. One hierarchical run draws the random numbers of all clusters from one
    sequence, and one edge more splits most of the other clusters in another way (docs/log.md,
    2026-11-27).
    """
    found: list[_Cluster] = []
    waiting = deque((-1, component) for component in _components(edges))
    while waiting:
        parent, inner = waiting.popleft()
        parts = _split(inner, settings)
        if parent >= 0 and len(parts) == 1:
            continue
        level = found[parent].level + 1 if parent >= 0 else 0
        for members, own in parts:
            found.append(_Cluster(level, parent, tuple(sorted(row[name] for name in members))))
            if len(members) > settings.max_cluster_size:
                waiting.append((len(found) - 1, own))
    return found


def _components(edges: list[_Edge]) -> list[list[_Edge]]:
    """Return the edges of each connected component, components by their first edge."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = {name: i for i, name in enumerate(dict.fromkeys(n for e in edges for n in e[:2]))}
    ends = np.array([(names[a], names[b]) for a, b, _ in edges], dtype=np.int64).T
    graph = coo_matrix((np.ones(len(edges)), (ends[0], ends[1])), shape=(len(names),) * 2)
    _, component = connected_components(graph, directed=False)
    held: dict[int, list[_Edge]] = defaultdict(list)
    for edge, of in zip(edges, component[ends[0]].tolist(), strict=True):
        held[of].append(edge)
    return list(held.values())


def _split(
    edges: list[_Edge], settings: GraphSettings
) -> Collection[tuple[list[str], list[_Edge]]]:
    """Return the clusters that Leiden finds in a network, each with its members and its edges."""
    import graspologic_native

    _, partition = graspologic_native.leiden(
        edges=edges,
        seed=settings.seed,
        resolution=settings.resolution,
        randomness=settings.randomness,
        use_modularity=True,
        iterations=1,
    )
    parts: dict[int, tuple[list[str], list[_Edge]]] = defaultdict(lambda: ([], []))
    for name in sorted(partition):
        parts[partition[name]][0].append(name)
    for edge in edges:
        if partition[edge[0]] == partition[edge[1]]:
            parts[partition[edge[0]]][1].append(edge)
    return sorted(parts.values())


def _title(members: Sequence[int], links: Mapping[int, int], titles: Sequence[str]) -> str:
    """Return the names of the members with the most links inside the cluster."""
    central = sorted(members, key=lambda m: (-links[m], titles[m]))[:_TITLE_NAMES]
    return ", ".join(titles[m] for m in central)


def _inner_edges(
    clusters: Sequence[_Cluster],
    source: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    size: int,
) -> list[list[int]]:
    """Return for each cluster the rows of the relationships with both ends in it."""
    inner: list[list[int]] = [[] for _ in clusters]
    for level in sorted({each.level for each in clusters}):
        holder = np.full(size, -1, dtype=np.int64)
        for i, each in enumerate(clusters):
            if each.level == level:
                holder[list(each.members)] = i
        both = holder[source] == holder[target]
        for edge in np.flatnonzero(both & (holder[source] >= 0)).tolist():
            inner[int(holder[source[edge]])].append(edge)
    return inner
