"""The interactive charts of a report, as plotly figures (MIT licence)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedmr_merge.report.figures import PALETTE, axis_title, class_colours
from fedmr_merge.report.study import Experiment, Spread
from fedmr_merge.runs.record import RunRecord, who_trained

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_DASHES = ("solid", "dash", "dot", "dashdot")
_MOST_BARS = 300  # of clients


def curves(experiments: Sequence[Experiment]) -> Figure:
    """Return accuracy, or another metric, against rounds, with the deviation over seeds as a band; buttons show it
    against the bytes sent so far, and on a logarithmic axis.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    by_bytes: list[Any] = []
    by_round: list[Any] = []
    for number, experiment in enumerate(experiments):
        rounds, metric = [round for round, _ in experiment.points], experiment.metric
        megabytes_a_round = (experiment.bytes_a_round or 0) / 1e6
        sent = [round * megabytes_a_round for round in rounds]
        means = [metric.scale * spread.mean for _, spread in experiment.points]
        bands = [metric.scale * (spread.deviation or 0) for _, spread in experiment.points]
        colour, dash = PALETTE[number % len(PALETTE)], _DASHES[number // len(PALETTE) % len(_DASHES)]
        group = experiment.method
        figure.add_scatter(
            x=rounds + rounds[::-1],
            y=[m + b for m, b in zip(means, bands, strict=True)]
            + [m - b for m, b in zip(means[::-1], bands[::-1], strict=True)],
            fill="toself",
            fillcolor=colour,
            opacity=0.2,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=group,
        )
        figure.add_scatter(
            x=rounds,
            y=means,
            customdata=bands,
            name=group,
            legendgroup=group,
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=(
                f"%{{y:{metric.form}}} ± %{{customdata:{metric.form}}}{metric.unit}"
                "<extra>%{fullData.name}, round %{x}</extra>"
            ),
        )
        by_round += [rounds + rounds[::-1], rounds]
        by_bytes += [sent + sent[::-1], sent]
    figure.update_layout(
        updatemenus=[_axis_buttons(by_round, by_bytes if any(e.bytes_a_round for e in experiments) else None)],
        xaxis_title="round",
        yaxis_title=axis_title(tuple(dict.fromkeys(experiment.metric for experiment in experiments))),
    )
    return figure


_MEGABYTES = "sent to the clients and back (MB)"


def _axis_buttons(by_round: list[Any], by_bytes: list[Any] | None) -> dict[str, Any]:
    """Return the buttons that change the horizontal axis; the one for bytes is left out where `by_bytes` is None."""
    buttons = [
        _button("by round", {"x": by_round}, {"xaxis.title.text": "round", "xaxis.type": "linear"}),
        _button("log rounds", {"x": by_round}, {"xaxis.title.text": "round", "xaxis.type": "log"}),
    ]
    if by_bytes is not None:
        buttons.append(
            _button("by bytes", {"x": by_bytes}, {"xaxis.title.text": _MEGABYTES, "xaxis.type": "linear"}),
        )
    # Plotly draws the pressed button on white, whatever the page is: its text must be dark on a dark page as well.
    colours = {"font": {"color": "#14181d"}, "bgcolor": "#c9d1d9"}
    place = {"direction": "right", "x": 0, "y": 1.16, "xanchor": "left"}
    return {"type": "buttons", "buttons": buttons, **place, **colours}


def _button(label: str, data: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    return {"label": label, "method": "update", "args": [dict(data), dict(layout)]}


def partition(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Return a bar for each client, divided by class; the largest clients where there are very many."""
    import plotly.graph_objects as go

    clients = sorted(range(len(counts)), key=lambda client: -sum(counts[client]))[:_MOST_BARS]
    clients.sort()
    figure = go.Figure()
    for label, (name, colour) in enumerate(zip(names, class_colours(len(names)), strict=True)):
        figure.add_bar(
            x=clients,
            y=[counts[client][label] for client in clients],
            name=name,
            marker_color=colour,
            hovertemplate=f"client %{{x}}: %{{y}} of {name}<extra></extra>",
        )
    figure.update_layout(barmode="stack", xaxis_title="client", yaxis_title="training examples")
    return figure


def confusion(found: Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """Return the share of each class's examples that were taken for which class, in percent of the class."""
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in found]
    figure = heat_map(shares, list(names), list(names), "%{y} taken for %{x}: %{z:.1f} %", "%")
    figure.update_layout(xaxis_title="predicted", yaxis_title="label")
    return figure


def class_accuracy(values: Sequence[float | None], names: Sequence[str]) -> Figure:
    """Return the accuracy on each class."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_bar(
        x=list(names),
        y=[None if value is None else 100 * value for value in values],
        marker_color=PALETTE[0],
        hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
    )
    figure.update_layout(yaxis_title="test accuracy (%)", yaxis_range=[0, 100], showlegend=False)
    figure.update_xaxes(type="category")
    return figure


def similarity(experiments: Sequence[Experiment]) -> Figure:
    """Return the mean pairwise cosine similarity of the cohort's models after training, round by round."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, experiment in enumerate(experiments):
        runs = [[line.get("similarity") for line in run.metrics] for run in experiment.runs.values()]
        means = [
            Spread.of(found).mean if (found := [v for v in values if v is not None]) else None
            for values in itertools.zip_longest(*runs)
        ]
        figure.add_scatter(
            x=list(range(1, len(means) + 1)),
            y=means,
            name=experiment.method,
            line={"color": PALETTE[number % len(PALETTE)], "dash": _DASHES[number // len(PALETTE) % len(_DASHES)]},
            hovertemplate="%{y:.4f}<extra>%{fullData.name}, round %{x}</extra>",
        )
    figure.update_layout(xaxis_title="round", yaxis_title="mean pairwise cosine similarity")
    return figure


def layer_similarity(layers: Mapping[str, Sequence[float]]) -> Figure:
    """Return a heat map: for each layer, how close each model's copy is to the mean of all copies (cosine)."""
    slots = [f"slot {slot}" for slot in range(len(next(iter(layers.values()))))]
    return heat_map(list(layers.values()), slots, list(layers), "%{y}, %{x}: %{z:.4f}", "cosine")


def trained_by(run: RunRecord) -> Figure | None:
    """Return a picture of who trained each layer's copy in the last round, with a gap for clients whose models were not
    used; None where no plan was recorded.
    """
    line = run.lineage[-1] if run.lineage else None
    if line is None or not line.get("plan"):
        return None
    permutations, clients = line["plan"]["permutations"], who_trained(line)
    rows = [[clients[source] for source in permutation] for permutation in permutations.values()]
    slots = [f"slot {slot}" for slot in range(len(clients))]
    figure = heat_map(rows, slots, list(permutations), "%{y} of %{x}: trained by client %{z}", "client")
    told = [["–" if client is None else client for client in row] for row in rows]
    figure.update_traces(text=told, texttemplate="%{text}", showscale=False)
    return figure


def heat_map(
    values: Sequence[Sequence[float | None]], columns: Sequence[str], rows: Sequence[str], hover: str, unit: str
) -> Figure:
    """Return a heat map whose rows are read from the top."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_heatmap(
        z=[list(row) for row in values],
        x=list(columns),
        y=list(rows),
        colorscale="Cividis",
        colorbar={"title": unit},
        hovertemplate=hover + "<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", type="category", automargin=True)
    figure.update_xaxes(type="category")
    figure.update_layout(height=max(320, 60 + 22 * len(rows)))
    return figure
