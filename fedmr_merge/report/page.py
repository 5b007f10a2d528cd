"""One HTML page about a study: it holds all that it needs, and asks the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fedmr_merge
from fedmr_merge.checkpoint.writer import write_text
from fedmr_merge.errors import FedmrMergeError
from fedmr_merge.federated.metrics import ACCURACY
from fedmr_merge.report import charts
from fedmr_merge.report.cohort import layer_similarity
from fedmr_merge.report.comparison import cell_name, comparison_table, verdict_table
from fedmr_merge.report.figures import axis_title
from fedmr_merge.report.study import Experiment, Spread, Study, differing_options
from fedmr_merge.runs.record import RunRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_DETAILED = 12  #: experiments that are shown one by one


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A titled part of a section: a chart or a table, and a sentence about it."""

    title: str
    text: str
    chart: str | None = None  #: plotly's JSON
    table: Table | None = None


@dataclass(frozen=True)
class Section:
    """A section of a page."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """What links to it say."""
        return self.title.lower().replace(" ", "-")


def write_page(study: Study, path: Path, *, target: float | None = None) -> None:
    """Write the page of a study.

    Args:
        study: What the page is about.
        path: The HTML file to write.
        target: An accuracy from 0 to 1, or a value of another metric; if given, the page says in which round and after
            how many bytes it is reached.

    Raises:
        FedmrMergeError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise FedmrMergeError(
            "a report needs plotly", hint="pip install 'fedmr-merge[report]', or use `fedmr-merge compare`"
        ) from error
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = [section for section in _sections(study, target) if section.parts]
    names = study.sweeps or sorted({experiment.name for experiment in study.experiments})
    text = environment.get_template("page.html.j2").render(
        title=", ".join(names[:3]) + (" …" if len(names) > 3 else ""),
        sections=sections,
        version=fedmr_merge.__version__,
        plotly=get_plotlyjs(),
    )
    write_text(path, text)


def _sections(study: Study, target: float | None) -> Iterator[Section]:
    yield Section("Results", list(_results(study, target)))
    text = "Mean over the seeds; the band is one standard deviation."
    curves = [Part(_title(cell, study), text, _json(charts.curves(found))) for cell, found in study.cells.items()]
    yield Section("Learning curves", curves)
    yield Section("Communication", list(_communication(study, target)))
    yield Section("Partition", list(_partitions(study)))
    shown = study.experiments[:_DETAILED]
    yield Section("Classes", [part for experiment in shown for part in _classes(experiment)])
    yield Section("Similarity of the cohort", list(_similarity(study)))
    yield Section("Who trained which layer", [part for experiment in shown for part in _trained_by(experiment)])
    yield Section("Settings", list(_settings(study)))


def _results(study: Study, target: float | None) -> Iterator[Part]:
    verdicts = verdict_table(study)
    if verdicts[1]:
        text = (
            "The accuracy of a method is the mean over its seeds of the mean of the last ten rounds. The margin is "
            "FedMR's accuracy less that of the best method that keeps one model, over the seeds with which both are "
            "finished; the test is a paired t-test over them. Where another metric decides, it takes the place of "
            "accuracy, and a positive margin is one in favour of FedMR."
        )
        yield Part("Does recombination win?", text, table=Table(*verdicts))
    text = (
        "Mean ± standard deviation over the seeds. The best round was picked by the test data, or by validation data "
        "where some were held out for it."
    )
    yield Part(
        axis_title(study.metrics).removesuffix(" (%)").capitalize(), text, table=Table(*comparison_table(study, target))
    )


def _communication(study: Study, target: float | None) -> Iterator[Part]:
    rows = []
    for experiment in study.experiments:
        if experiment.bytes_a_round is None:
            continue
        row = [_name(experiment), f"{experiment.bytes_a_round / 1e6:.3f}"]
        if target is not None:
            reached = experiment.rounds_to(target)
            spread = Spread.of([round * experiment.bytes_a_round / 1e6 for round in reached]) if reached else None
            row += [Spread.of(reached).shown(form=".1f"), spread.shown()] if spread else ["not reached", ""]
        rows.append(row)
    columns = ["experiment", "MB a round, to the clients and back"]
    if target is not None:
        aim = f"{100 * target:g} %" if study.metrics == (ACCURACY,) else f"{target:g}"
        columns += [f"rounds to {aim}", f"MB to {aim}"]
    if rows:
        yield Part(
            "Bytes a round", "Counted from the tensors that were sent and came back.", table=Table(columns, rows)
        )


def _partitions(study: Study) -> Iterator[Part]:
    for cell, experiments in study.cells.items():
        run = _first(experiments[0])
        found = run.partition
        if found is not None and "class_counts" in found:
            text = f"The training examples of each client, by class; seed {run.recipe['seed']}."
            chart = charts.partition(found["class_counts"], found["class_names"])
            yield Part(_title(cell, study), text, _json(chart))


def _classes(experiment: Experiment) -> Iterator[Part]:
    run = _first(experiment)
    found = run.evaluation
    if found is None or "confusion" not in found:
        return
    about = f"{_name(experiment)}, seed {run.recipe['seed']}"
    text = f"Measured after round {found['round']} on {found['examples']:,} test examples."
    names = found["class_names"]
    yield Part(f"{about}: accuracy by class", text, _json(charts.class_accuracy(found["class_accuracy"], names)))
    yield Part(f"{about}: confusion", text, _json(charts.confusion(found["confusion"], names)))


def _similarity(study: Study) -> Iterator[Part]:
    for cell, experiments in study.cells.items():
        several = [e for e in experiments if any("similarity" in line for line in _first(e).metrics)]
        if several:
            text = "Of the trained models of a round, before they are averaged or recombined; mean over the seeds."
            yield Part(_title(cell, study), text, _json(charts.similarity(several)))
    for experiment in study.experiments[:_DETAILED]:
        run = _first(experiment)
        layers = layer_similarity(run)
        if layers:
            text = "Each model's copy of a layer against the mean of all copies, in the newest checkpoint."
            title = f"{_name(experiment)}, seed {run.recipe['seed']}: layer by layer"
            yield Part(title, text, _json(charts.layer_similarity(layers)))


def _trained_by(experiment: Experiment) -> Iterator[Part]:
    run = _first(experiment)
    chart = charts.trained_by(run)
    if chart is not None:
        text = "The client that trained each layer of each model, after the recombination of the last round."
        yield Part(f"{_name(experiment)}, seed {run.recipe['seed']}", text, _json(chart))


def _settings(study: Study) -> Iterator[Part]:
    options = differing_options(study.experiments)
    if any(options):
        rows = [[_name(e), differs] for e, differs in zip(study.experiments, options, strict=True)]
        text = "The options that differ between the experiments."
        yield Part("Hyper-parameters", text, table=Table(["experiment", "options"], rows))
    presets = [[_name(e), e.preset] for e in study.experiments if e.preset]
    if presets:
        text = "Whose settings an experiment began with, as its recipe says."
        yield Part("Presets", text, table=Table(["experiment", "preset"], presets))
    columns = ["fedmr_merge", "python", "platform", "device", "threads"]
    found = [run.environment for experiment in study.experiments for run in experiment.runs.values()]
    rows = [list(row) for row in dict.fromkeys(tuple(str(e.get(c, "")) for c in columns) for e in found if e)]
    if rows:
        yield Part("Environment", "Where the runs were computed.", table=Table(columns, rows))


def _first(experiment: Experiment) -> RunRecord:
    return experiment.runs[min(experiment.runs)]


def _name(experiment: Experiment) -> str:
    return ", ".join(experiment.choices.values()) or f"{experiment.name}: {experiment.method}"


def _title(cell: Sequence[tuple[str, str]], study: Study) -> str:
    return cell_name(cell, study) or "all runs"


def _json(figure: Figure) -> str:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        font={"family": "system-ui, sans-serif"},
        legend={"orientation": "h", "y": -0.25},
    )
    # `</` would end the script that the text stands in.
    return str(figure.to_json()).replace("</", "<\\/")
