"""Draws docs/lineage.svg from the asset graph that Dagster itself has.

    python -m ragtuned_pipeline_tests.lineage_picture

One box a step, with the assets it makes (the ablation's variants, which are alike, share one); an
arrow from each step to those that are made from its assets, unless it follows from other arrows.
Rows are ordered by what depends on what.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import networkx as nx
from dagster import AssetKey
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.evaluation.ablation import VARIANTS

PICTURE = Path(__file__).parents[1] / "docs" / "lineage.svg"
_COLOURS = {
    "corpus": "#dcebf7",
    "graph": "#dff2e1",
    "synthesis": "#fdf0d5",
    "tuning": "#f8dcdc",
    "evaluation": "#e9e2f4",
    "ablation": "#f3e6f1",
    "promotion": "#e6e6e6",
}
_LINE, _PAD, _GAP_X, _GAP_Y, _LETTER = 0.155, 0.09, 0.22, 0.42, 0.072  # inches


def steps() -> nx.DiGraph:
    """Return the steps: nodes are tuples of asset names, with their group."""
    assets = defs.resolve_asset_graph()
    owner: dict[str, tuple[str, ...]] = {}
    graph = nx.DiGraph()
    for key in assets.get_all_asset_keys():
        made = sorted({shown_name(key) for key in assets.get(key).execution_set_asset_keys})
        step = tuple(made) or (shown_name(key),)
        owner[key.to_user_string()] = step
        graph.add_node(step, group=assets.get(key).group_name)
    for key in assets.get_all_asset_keys():
        for parent in assets.get(key).parent_keys:
            source, target = owner[parent.to_user_string()], owner[key.to_user_string()]
            if source != target:
                graph.add_edge(source, target)
    reduced = nx.transitive_reduction(graph)
    reduced.add_nodes_from(graph.nodes(data=True))
    return reduced


def shown_name(key: AssetKey) -> str:
    """Return an asset's name in the picture."""
    name = key.to_user_string()
    if "ablation" not in name:
        return name
    variant = next((each for each in VARIANTS if name.endswith(f"_{each}")), None)
    return f"{name.removesuffix(variant)}<variant>" if variant else name


def draw(graph: nx.DiGraph) -> Figure:
    rows: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for depth, generation in enumerate(nx.topological_generations(graph)):
        rows[depth] = sorted(
            generation, key=lambda step: (list(_COLOURS).index(_group(graph, step)), step)
        )
    sizes = {
        step: (max(map(len, step)) * _LETTER + 2 * _PAD, len(step) * _LINE + 2 * _PAD)
        for step in graph
    }
    widths = {
        depth: sum(sizes[step][0] for step in row) + _GAP_X * (len(row) - 1)
        for depth, row in rows.items()
    }
    width = max(widths.values()) + 0.4
    places: dict[tuple[str, ...], tuple[float, float]] = {}
    top = 0.2
    for depth, row in rows.items():
        x = (width - widths[depth]) / 2
        for step in row:
            places[step] = (x, top)
            x += sizes[step][0] + _GAP_X
        top += max(sizes[step][1] for step in row) + _GAP_Y
    figure = Figure(figsize=(width, top))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(top, 0))
    axes.axis("off")
    for source, target in graph.edges:
        (x1, y1), (x2, y2) = places[source], places[target]
        start = (x1 + sizes[source][0] / 2, y1 + sizes[source][1])
        end = (x2 + sizes[target][0] / 2, y2)
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=8, color="#8a8a8a", lw=0.7, zorder=0
            )
        )
    for step, (x, y) in places.items():
        box = FancyBboxPatch(
            (x, y),
            *sizes[step],
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=_COLOURS[_group(graph, step)],
            edgecolor="#555555",
            lw=0.7,
        )
        axes.add_patch(box)
        for line, name in enumerate(step):
            axes.text(
                x + sizes[step][0] / 2,
                y + _PAD + (line + 0.5) * _LINE,
                name,
                ha="center",
                va="center",
                fontsize=7.5,
            )
    return figure


def _group(graph: nx.DiGraph, step: tuple[str, ...]) -> str:
    return str(graph.nodes[step]["group"])


def main() -> None:
    # Text as text, and ids that do not change from run to run.
    rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "lineage", "font.family": "sans-serif"}
    )
    draw(steps()).savefig(
        PICTURE,
        metadata={"Date": None, "Title": "Assets of the pipeline and what they are made from"},
    )
    print(PICTURE)


if __name__ == "__main__":
    main()
