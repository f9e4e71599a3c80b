"""The graph as a networkx object, as GraphML, and as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa

_DRAWN = 60
_LABEL = 32  # characters; longer ones would be cut off at the picture's edge
_COLOURS = (  # readable on white and on near black
    "#4c78a8", "#e45756", "#54a24b", "#b279a2", "#f58518", "#2a9d9a", "#9d755d", "#d67195",
    "#8a8d0f", "#7b6fd0",
)  # fmt: skip
_GREY = "#888888"


def to_networkx(entities: pa.Table, relationships: pa.Table) -> Any:
    """Return a networkx.DiGraph: nodes are entity ids, edges go as stated in the text.

    Node attributes: title, type, description, frequency, degree; edge attributes: id, description,
    weight.
    """
    import networkx as nx

    graph = nx.DiGraph()
    for row in entities.select(
        ["id", "title", "type", "description", "frequency", "degree"]
    ).to_pylist():
        graph.add_node(row.pop("id"), **row)
    for row in relationships.select(
        ["source_id", "target_id", "id", "description", "weight"]
    ).to_pylist():
        graph.add_edge(row.pop("source_id"), row.pop("target_id"), **row)
    return graph


def write_graphml(entities: pa.Table, relationships: pa.Table, path: Path) -> None:
    """Write the graph to `path` as GraphML, for Gephi, Cytoscape, yEd and the like."""
    import networkx as nx

    path.parent.mkdir(parents=True, exist_ok=True)
    nx.write_graphml(to_networkx(entities, relationships), path, encoding="utf-8")


def draw(entities: pa.Table, relationships: pa.Table, communities: pa.Table) -> str:
    """Return a picture of the graph's 60 most linked entities as SVG text.

    Colours are root communities (grey: none), sizes grow with degree, the background is
    transparent. Equal tables give equal text.
    """
    import matplotlib as mpl
    import networkx as nx
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = entities.select(["id", "title", "degree"]).to_pylist()
    chosen = sorted(rows, key=lambda row: (-row["degree"], row["title"], row["id"]))[:_DRAWN]
    graph = to_networkx(entities, relationships).to_undirected()
    shown = nx.Graph()  # in an order of our own: a subgraph's order is that of a set
    shown.add_nodes_from(row["id"] for row in chosen)
    shown.add_edges_from(
        (a["id"], b["id"])
        for i, a in enumerate(chosen)
        for b in chosen[i + 1 :]
        if graph.has_edge(a["id"], b["id"])
    )
    colour = _colours(communities)
    with mpl.rc_context({"svg.hashsalt": "ragtuned", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 8))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        if chosen:
            _draw_graph(axes, shown, chosen, colour)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _colours(communities: pa.Table) -> dict[str, str]:
    """Return entity id -> colour of its root community, the largest communities first."""
    roots = [row for row in communities.to_pylist() if row["level"] == 0]
    roots.sort(key=lambda row: (-row["size"], row["id"]))
    return {
        entity: _COLOURS[i % len(_COLOURS)]
        for i, row in enumerate(roots)
        for entity in row["entity_ids"]
    }


def _draw_graph(
    axes: Any, shown: Any, chosen: list[dict[str, Any]], colour: dict[str, str]
) -> None:
    import networkx as nx

    place = _spread(nx.spring_layout(shown, seed=7, k=2.5 / len(chosen) ** 0.5, iterations=200))
    most = max(row["degree"] for row in chosen) or 1
    for a, b in shown.edges:
        axes.plot(
            [place[a][0], place[b][0]],
            [place[a][1], place[b][1]],
            color=_GREY,
            alpha=0.35,
            linewidth=0.7,
            zorder=1,
        )
    for row in chosen:
        x, y = place[row["id"]]
        fill = colour.get(row["id"], _GREY)
        axes.scatter([x], [y], s=25 + 260 * row["degree"] / most, color=fill, zorder=2)
        axes.annotate(
            _label(row["title"]),
            (x, y),
            xytext=(0, 5 + 7 * (row["degree"] / most) ** 0.5),
            textcoords="offset points",
            ha="center",
            fontsize=8 if row["degree"] * 4 < most else 10,
            color=fill,
            zorder=3,
        )
    # Room for the labels, which stick out of the points' box.
    axes.set_xlim(-0.13, 1.13)
    axes.set_ylim(-0.06, 1.08)


def _label(title: str) -> str:
    short = title if len(title) <= _LABEL else title[: _LABEL - 1] + "…"
    return short.replace("$", r"\$")  # no mathematics in names


def _spread(place: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Move points half-way to even distances on each axis, so that their labels part."""
    spread: list[dict[str, float]] = []
    for axis in (0, 1):
        at = {node: float(point[axis]) for node, point in place.items()}
        order = sorted(at, key=lambda node: (at[node], node))
        low, high = at[order[0]], at[order[-1]]
        spread.append(
            {
                node: 0.5 * (at[node] - low) / ((high - low) or 1) + 0.5 * (i / len(order))
                for i, node in enumerate(order)
            }
        )
    return {node: (spread[0][node], spread[1][node]) for node in place}
