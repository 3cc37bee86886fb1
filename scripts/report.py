"""A page about trained models:  python -m scripts.report EXP [EXP ...]

EXP is an experiment's folder (models/EXP), its name, or a checkpoint. Writes one self-contained file, report.html, that
needs no network: the config, training curves, samples, reconstructions, a traversal with a slider for each latent
dimension, interpolations, the latents, and every measured number with its standard error and its command. The pictures
are drawn from the checkpoint; what has not been measured is named with the command that measures it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import config as config_module
from commandline import Parser
from config import FIELDS, Command, Config, integer, words_for
from metrics.measured import of_another
from modes.export import training_command
from scripts import report_page as page
from scripts import report_sources as sources
from scripts.report_page import escape, measured, number
from scripts.report_sources import Experiment
from utils import atomic, exit_status, to_its_error, versions, writable_file

PROG = "python -m scripts.report"
SHOWN_CARDS = 12  # dimensions of the traversal that are seen at once
FAMILIES = {"diff": "InfoDiffusion", "vae": "VAE", "vanilla": "plain diffusion"}


# ---------------------------------------------------------------------------------------------------------------------
# Sections: each gives markup, or '' where the models have nothing of the kind


def about(one: Experiment) -> str:
    """One line on what a model is."""
    size = "×".join(map(str, one.shape[1:])) + f", {one.shape[0]} channel{'s' * (one.shape[0] > 1)}"
    size = size if len(one.shape) == 3 else f"{one.shape[0]} coordinates"
    data = f"{one.config.dataset}, {size}"
    latent = f", z of {one.config.a_dim} dimensions" if one.config.has_latent else ""
    return (f"{FAMILIES[one.config.model]} on {data}{latent}; {one.parameters:,} parameters, {one.rows:,} training "
            f"rows, epoch {one.epoch:,} (step {one.step:,}).")


def headline(one: Experiment) -> list[tuple[str, str]]:
    """The few numbers that a reader looks for first, of this very checkpoint: (name, markup)."""
    found = []
    for name in ("latent_quality.json", "nll.json", "classification.json", "disentanglement.json", "fid.json"):
        own = sources.measures(name, one.own_record(name))
        wanted = {"latent_quality.json": "psnr", "nll.json": "nll", "classification.json": " from z",
                  "disentanglement.json": "disentanglement", "fid.json": "FID"}[name]
        there = [value for value in own if wanted in value.measure and value.value is not None]
        found += [(value.measure, measured(value.value, value.se))
                  for value in there[: 2 if name == "latent_quality.json" else 1]]
    information = one.own_record("mutual_info.json")
    ends = (information.get("bracket_nats") or {}).get("interval")
    if ends:
        found.append((f"I(x; z) in nats, from .. to{noise_of(information)}", f"{ends[0]:.2f} .. {ends[1]:.2f}"))
    until = [line for line in one.log if line["step"] <= one.step]
    if until and "denoise" in until[-1].get("val", {}):
        unit = str(until[-1]["unit"])
        name = {"nats": "held-out denoising loss, nats"}.get(unit, f"held-out noise error, {unit}")
        found.append((name, measured(until[-1]["val"]["denoise"], until[-1].get("val_se", {}).get("denoise"))))
    return found


def noise_of(information: dict) -> str:
    tau = information.get("tau")
    return "" if tau is None else f", at noise tau {tau:g}"


def verdicts(experiments: list[Experiment]) -> str:
    """Failed checks, results of another checkpoint, and cautions, before anything else."""
    lines = []
    for one in experiments:
        of = f"{one.label}: " if len(experiments) > 1 else ""
        for name, record in one.results.items():
            if isinstance(record, str):
                lines.append(page.note(f"{of}{record}", "failed"))
                continue
            lines += [page.note(f"{of}failed check in {name}: {check}: {detail}", "failed")
                      for check, passed, detail in sources.checks(record) if not passed]
            lines += [page.note(f"{of}{name}{entry and f', {entry},'} was measured on another checkpoint than "
                                f"{one.path}", "care") for entry in of_another(name, record, one.hash)]
    return "".join(lines)


def configuration(experiments: list[Experiment]) -> str:
    """The flags that differ between the experiments, then those that differ from the defaults, then the rest."""
    names = [*config_module.names_of("model"), *config_module.names_of("training"), "epochs"]
    several = len(experiments) > 1
    values = {name: [getattr(one.config, name) for one in experiments] for name in names}
    defaults = {name: [config_module.default_of(one.config, name) for one in experiments] for name in names}
    between = [name for name in names if len(set(map(repr, values[name]))) > 1]
    changed = [name for name in names if name not in between and values[name] != defaults[name]]
    rest = [name for name in names if name not in between and name not in changed]

    def cell(name: str, place: int) -> str:
        value, default = values[name][place], defaults[name][place]
        unset = words_for(FIELDS[name].metadata["unset"], "training") if value is None else "none"
        shown = unset if value in (None, "") else number(value)
        return f'<span class="{"changed" if value != default else ""}">{escape(shown)}</span>'

    def what(name: str) -> str:
        return f'<span class="help">{escape(words_for(FIELDS[name].metadata["help"], "training"))}</span>'

    def rows(chosen: list[str]) -> list[list[str]]:
        return [[f"<code>--{name}</code>", *(cell(name, i) for i in range(len(experiments))), what(name)]
                for name in chosen]

    head = ["flag", *([one.label for one in experiments] if several else ["value"]), "what it is"]
    parts = [f"<h3>Differ between the experiments</h3>{page.table(head, rows(between))}"] if several and between else []
    if several and not between:
        parts.append("<p>The experiments do not differ in any flag of the model or of its training.</p>")
    parts.append(f"<h3>Differ from the defaults</h3>{page.table(head, rows(changed))}" if changed else
                 "<p>Every other flag has its default value.</p>" if several else "<p>Every flag has its default.</p>")
    parts.append(page.details(f"The other {len(rest)} flags, at their defaults", page.table(head, rows(rest))))
    return "".join(parts)


def curves(experiments: list[Experiment]) -> str:
    """A chart a term: training solid, validation dashed with a band of two standard errors."""
    charts: dict[str, list[page.Series]] = {}
    missing = []
    for colour, one in enumerate(experiments):
        if not one.log:
            missing.append(page.note(f"{one.label}: no metrics.jsonl in its folder of logs; training writes it:",
                                     command=training_command(one.config)))
        for log, prefix in ((one.log, ""), (one.latent_log, "diffusion over z: ")):
            for name, own in terms(log, one.label, colour):
                charts.setdefault(prefix + name, []).extend(own)
    of = [f"{one.label}: " if len(experiments) > 1 else "" for one in experiments]
    key = [(name + part, i, dash) for i, name in enumerate(of)
           for part, dash in (("training", ""), ("validation ± 2 SE", "5 4"))]
    unit = " or ".join(dict.fromkeys(str(line["unit"]) for one in experiments for line in one.log[:1]))
    drawn = "".join(page.chart(name, own, "epoch", unit if name.endswith("denoise") else "")
                    for name, own in charts.items())
    return (page.line_key(key) if drawn else "") + f'<div class="charts">{drawn}</div>' + "".join(missing)


def terms(log: list[dict], label: str, colour: int):
    """(name, its curves) of every term of a log."""
    names = dict.fromkeys(name for line in log for part in ("train", "val") for name in line.get(part) or {})
    if any("fid" in line for line in log):
        names["fid"] = None
    for name in names:
        own = []
        for part, dash in (("train", ""), ("val", "5 4")):
            lines = [line for line in log if name in (line.get(part) or {})]
            if part == "val" and name == "fid":
                lines = [line for line in log if "fid" in line]
                own.append(page.Series(label, [line["epoch"] for line in lines], [line["fid"] for line in lines],
                                       [line.get("fid_se") for line in lines], colour, dash))
            elif lines:
                se = [(line.get(f"{part}_se") or {}).get(name) for line in lines]
                own.append(page.Series(f"{label}, {part}", [line["epoch"] for line in lines],
                                       [line[part][name] for line in lines],
                                       se if any(value is not None for value in se) else None, colour, dash))
        yield name, own


def samples(one: Experiment) -> str:
    found = one.pictures["samples"]
    if isinstance(found, str):
        return page.note(f"Samples could not be drawn: {found}")
    drawn, setting = found
    how = f"{len(drawn)} samples, not chosen: seed {setting['seed']}"
    if one.config.model != "vae":
        how += f", {setting['sampler']} in {setting['steps']} steps"
    if one.config.has_latent:
        how += "; z from the diffusion over z" if setting.get("latent") else "; z from the prior"
    if drawn.ndim == 4:
        shown = page.strip(drawn, 12, f"samples of {one.label}")
        return f"<figure>{shown}<figcaption>{escape(how)}</figcaption></figure>"
    clouds = {"samples": drawn[:, :2]}
    if "data" in one.pictures:
        clouds["held-out points"] = one.pictures["data"][:, :2]
    box = page.box_of(list(clouds.values())[-1])
    shown = ""
    for name, points in clouds.items():
        beyond = 1 - page.within(points, box).mean()
        words = name + (f", {beyond:.1%} of them beyond the edges" if beyond else "")
        shown += f"<div>{page.field(points, box, label=words)}<p class='soft'>{words}</p></div>"
    return f'<div class="charts">{shown}</div><p class="soft">{escape(how)}, first two coordinates</p>'


def latent_note(one: Experiment) -> str:
    if one.config.model == "diff" and not one.has_latent_diffusion:
        return page.note("z is drawn from its prior; a diffusion over z often gives better samples:",
                         command=one.command("train_latent_ddim"))
    return ""


def reconstructions(one: Experiment) -> str:
    found = one.pictures.get("reconstructions")
    if not isinstance(found, dict):
        return page.note(f"Reconstructions could not be drawn: {found}") if found else ""
    rows = "".join(f"<span>{name_of_row(name)}</span>{page.strip(row, len(row), name)}" for name, row in found.items())
    record = one.record("latent_quality.json")
    numbers = ""
    if record is None and one.config.model != "vae":
        numbers = page.note("Not measured yet; this does it:", command=one.command("latent_quality"))
    elif record is not None:
        try:
            numbers = quality_table(record)
        except (KeyError, TypeError):
            numbers = page.note("latent_quality.json has no such numbers; this measures them again:",
                                command=one.command("latent_quality"))
    return f'<div class="rows">{rows}</div>{numbers}'


def name_of_row(name: str) -> str:
    return escape(name).replace("x_T", "x<sub>T</sub>")


def quality_table(record: dict) -> str:
    rows = []
    for start in ("inferred", "random"):
        errors = record[start]
        cells = [measured(errors[key], errors[f"{key}_se"]) for key in ("mse", "psnr", "ssim")]
        draws = f", {errors['draws']} draws" if "draws" in errors else ""
        rows.append([name_of_row(f"{start} x_T"), *cells, escape(f"{errors.get('images', record['images'])}{draws}")])
    return page.table(["decoded from z and", "MSE", "PSNR, dB", "SSIM", "images"], rows)


def traversal(one: Experiment, number_: int, data: dict) -> str:
    """A card a dimension, the most informative first."""
    found = one.pictures.get("traversal")
    if not found:
        return ""
    if isinstance(found, str):
        return page.note(f"The traversal could not be drawn: {found}")
    information = one.own_record("mutual_info.json")
    nats = per_dimension(one)
    lost = information.get("reliance_nats") or []
    count, kinds, values, height, width, channels = found.frames.shape
    data["traversals"].append({"id": f"traversal{number_}", "sheet": f"frames{number_}", "kinds": kinds, "width": width,
                               "height": height, "values": np.round(found.values, 6).tolist()})
    middles = None if nats is None else [(low + high) / 2 for low, high in nats]
    share = middles or found.change[:, -1].tolist()
    largest = max((middles[d] for d in found.dimensions) if middles else share) or 1.0
    cards = []
    for row, d in enumerate(found.dimensions.tolist()):
        facts = [f"{nats[d][0]:.2f} .. {nats[d][1]:.2f} nats"] if nats else []
        if d < len(lost):
            facts.append(f"denoiser loses {' ± '.join(to_its_error(lost[d]['mean'], lost[d]['se']))}")
        facts.append(f"moves pixels by {' / '.join(f'{change:.0%}' for change in found.change[row])}")
        own = middles[d] if middles else share[row]
        cards.append((own, page.card(row, f"z{d}", int(found.start[row]), values - 1,
                                     [f"from {kind} x_T" if kind else "decoded" for kind in found.kinds],
                                     "; ".join(facts), own / largest)))
    cards.sort(key=lambda pair: -pair[0])
    pinned = ("Left: from the x<sub>T</sub> inferred from the image, which pins most of the picture; right: from a "
              "random x<sub>T</sub>, where z alone decides, and its range below. ") if kinds > 1 else ""
    order = "what each dimension says of x, I(x; z<sub>d</sub>)" if nats else "how far the picture moves"
    noise = f"; nats are a 95 % interval of I(x; z<sub>d</sub>){escape(noise_of(information))}" if nats else ""
    part = f"{count} of {one.config.a_dim} dimensions" if count < one.config.a_dim else f"All {count} dimensions"
    text = (f"<p>{part} of one test image, each changed alone from two deviations below the mean of the codes to two "
            f"above. {pinned}<span class='soft'>Ordered by {order}{noise}; pixels: root mean square difference of the "
            f"two ends, of the full range.</span></p>")
    missing = "" if nats else page.note("The information of every dimension is not measured yet; this does it:",
                                        command=one.command("mutual_info", ["--mi_steps", "0"]))
    flat = found.frames.reshape(-1, height, width, channels)
    return (f'{text}{missing}<div id="traversal{number_}">{page.hidden_sheet(f"frames{number_}", flat, values)}'
            f'<div class="all"><label for="all{number_}">All dimensions</label><input type="range" id="all{number_}" '
            f'min="0" max="{values - 1}" value="{values // 2}"><button type="button">The image\'s own</button></div>'
            f'{shown_cards([card for _, card in cards])}</div>')


def shown_cards(cards: list[str]) -> str:
    first, rest = cards[:SHOWN_CARDS], cards[SHOWN_CARDS:]
    grids = [f'<div class="cards">{"".join(part)}</div>' for part in (first, rest)]
    return grids[0] + (page.details(f"The other {len(rest)} dimensions", grids[1]) if rest else "")


def per_dimension(one: Experiment) -> list[tuple[float, float]] | None:
    """The interval of I(x; z_d) of every dimension; None if not measured on this checkpoint."""
    try:
        found = [tuple(part["interval"]) for part in one.own_record("mutual_info.json")["per_dimension_nats"]]
    except (KeyError, TypeError):
        return None
    return found if len(found) == one.config.a_dim else None


def interpolation(one: Experiment) -> str:
    found = one.pictures.get("paths")
    if isinstance(found, str):
        return page.note(f"Interpolations could not be drawn: {found}")
    shown = "".join(f"<figure>{page.strip(path, len(path), 'interpolation between two images')}</figure>"
                    for path in found or [])
    ends = "<span>image, its reconstruction …</span><span>… the other's, image</span>"
    return shown and f'{shown}<div class="ends soft">{ends}</div>'


def latents(one: Experiment, number_: int, data: dict) -> str:
    """The codes in their principal plane, with a thumbnail of the nearest point."""
    found = one.pictures.get("codes")
    if not found:
        return ""
    if isinstance(found, str):
        return page.note(f"The codes could not be drawn: {found}")
    pictures = found.thumbnails
    columns = int(np.ceil(len(pictures) ** 0.5))
    data["latents"].append({
        "id": f"latents{number_}", "sheet": f"thumbnails{number_}", "columns": columns, "height": pictures.shape[1],
        "width": pictures.shape[2], "labels": found.labels.tolist(), "names": list(found.names),
        "values": [list(own) for own in found.value_names]})
    sheet = page.hidden_sheet(f"thumbnails{number_}", pictures, columns) if len(pictures) else ""
    canvas = '<canvas width="224" height="224" role="img" aria-label="the nearest image"></canvas>' if sheet else ""
    options = "".join(f'<option value="{k}">{escape(name)}</option>' for k, name in enumerate(found.names))
    choice = f'<p class="soft"><label>Coloured by <select>{options}</select></label></p>'
    choice = choice if len(found.names) > 1 else ""
    plane = page.cloud(found.plane, label=f"z of {len(found.plane)} test images; arrow keys go from point to point")
    share = f", first two principal components ({found.share:.0%} of the variance)" if one.config.a_dim > 2 else ""
    return (f'<p>z of {len(found.plane)} test images{share}. <span class="soft">Point at one, or use the arrow keys on '
            f'the plot.</span></p>{choice}<div class="latents" id="latents{number_}">{sheet}{plane}<div class="shown">'
            f'{canvas}<div class="words" aria-live="polite"></div></div><div class="key"></div></div>')


def results(experiments: list[Experiment]) -> str:
    """A table a file, a column an experiment; below it the checks, what else the file says, and its commands."""
    names = dict.fromkeys(name for one in experiments for name in one.results)
    parts = []
    for name in sorted(names):
        have = [(one, one.record(name)) for one in experiments if one.record(name) is not None]
        if not have:
            continue
        parts.append(f"<h3>{escape(name)}</h3>{measure_table(name, have)}")
        parts += [checks(record, one.label if len(experiments) > 1 else "") for one, record in have]
        for one, record in have:
            of = f" ({one.label})" if len(have) > 1 else ""
            rows = [[escape(path), measured(value, error)] for path, value, error in sources.leaves(record)][:400]
            parts.append(page.details(f"Everything in the file{of}", page.table(["entry", "value"], rows)))
            lines = "".join(f"<pre>{escape(line)}</pre>" for line in sources.commands(name, record, one))
            parts.append(page.details(f"The command to repeat it{of}", lines) if lines else "")
    for one in experiments:
        missing = [(name, maker) for name, maker in wanted(one) if name not in one.results]
        if missing:
            of = f" of {one.label}" if len(experiments) > 1 else ""
            lines = "".join(f"<pre>{escape(line)}</pre>" for _, maker in missing for line in maker)
            named = ", ".join(name.removesuffix(".json") for name, _ in missing)
            parts += [page.note(f"Not measured yet{of}: {named}"), page.details("The commands that measure it", lines)]
    return "".join(parts)


def measure_table(name: str, have: list[tuple[Experiment, dict]]) -> str:
    """Measures by row, experiments by column."""
    found = [{value.measure: value for value in sources.measures(name, record)} for _, record in have]
    known = any(value.se is not None for own in found for value in own.values())
    rows = [[escape(row), *(measured(own[row].value, own[row].se) if row in own else "" for own in found)]
            for row in dict.fromkeys(row for own in found for row in own)]
    if not rows:
        return ""
    head = ["measure", *([one.label for one, _ in have] if len(have) > 1 else ["value"])]
    return page.table(head, rows) + ('<p class="soft">±: standard error</p>' if known else "")


def checks(record: dict, label: str) -> str:
    found = list(sources.checks(record))
    of = f"{label}: " if label else ""
    failed = "".join(page.note(f"{of}failed: {name}: {detail}", "failed")
                     for name, passed, detail in found if not passed)
    good = [f'<li><span class="passed">passed</span> {escape(name)}: {escape(detail)}</li>'
            for name, passed, detail in found if passed]
    careful = "".join(page.note(of + text, "care") for text in sources.cautions(record))
    return failed + careful + (f'<ul class="checks">{"".join(good)}</ul>' if good else "")


def wanted(one: Experiment) -> list[tuple[str, list[str]]]:
    """Result files that this model can have, each with the commands that make it."""
    config, images = one.config, len(one.shape) == 3
    found = []
    if config.model != "vae" and images:
        found.append(("latent_quality.json", [one.command("latent_quality")]))
    if config.has_latent:
        found.append(("mutual_info.json", [one.command("mutual_info")]))
    codes = one.pictures.get("codes")
    if codes and not isinstance(codes, str) and codes.names:
        save = one.command("save_latent")
        found.append(("classification.json", [save, one.command("train_classifier.py")]))
        if len(codes.names) > 1:
            found.append(("disentanglement.json", [save, one.command("eval_disentanglement.py")]))
    if config.model == "vanilla" or (config.model == "diff" and config.z_dropout > 0):
        found.append(("nll.json", [one.command("nll")]))
    return found


def training_commands(experiments: list[Experiment]) -> str:
    return "".join((f"<h3>{escape(one.label)}</h3>" if len(experiments) > 1 else "")
                   + f"<pre>{escape(training_command(one.config))}</pre>"
                   + f'<p class="soft">Checkpoint {escape(one.path)}, hash {one.hash}.</p>' for one in experiments)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def render(experiments: list[Experiment]) -> str:
    """The document. `pictures` and `parameters` of the experiments are filled in."""
    data: dict = {"traversals": [], "latents": []}

    def beside(make) -> str:
        parts = [(one.label, make(one)) for one in experiments]
        return page.side(parts) if any(content for _, content in parts) else ""

    def numbered(make) -> str:
        places = {id(one): place for place, one in enumerate(experiments)}
        return beside(lambda one: make(one, places[id(one)], data))

    sections = {
        "traversal": ("Traversal of the latent", numbered(traversal)),
        "samples": ("Samples", beside(lambda one: samples(one) + latent_note(one))),
        "reconstructions": ("Reconstructions", beside(reconstructions)),
        "interpolation": ("Interpolation", beside(interpolation)),
        "latents": ("Latents", numbered(latents)),
        "curves": ("Training", curves(experiments)),
        "config": ("Configuration", configuration(experiments) + training_commands(experiments)),
        "results": ("Results", results(experiments)),
    }
    if len(experiments) > 1:  # what differs, first
        sections = {"config": sections.pop("config"), **sections}
    contents = {key: name for key, (name, content) in sections.items() if content}
    body = "".join(page.section(key, name, sections[key][1]) for key, name in contents.items())
    title = " / ".join(one.label for one in experiments)
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    foot = f"Made by {escape(PROG)} with {escape(known)}. Click a command to select it."
    return page.page(title, head(experiments), contents, body, foot, data)


def head(experiments: list[Experiment]) -> str:
    several = len(experiments) > 1
    parts = ["<h1>", f"{len(experiments)} experiments" if several else escape(experiments[0].label), "</h1>"]
    shown = []
    for one in experiments:
        found = headline(one)
        shown.append((one.label, f'<p class="soft">{escape(about(one))}</p>' + (page.tiles(found) if found else "")))
    return "".join(parts) + page.side(shown) + verdicts(experiments)


def draw(one: Experiment, args) -> None:
    """Fill in what is computed from the checkpoint: its pictures and its parameters."""
    from experiment import open_trained
    from models import parameter_count
    from scripts import report_pictures

    own = replace(Config(), device=args.device, num_workers=0, model_folder=str(one.roots.models),
                  batch_size=one.config.batch_size, precision=one.config.precision,
                  data_dir=args.data_dir or one.config.data_dir,
                  sample_steps=min(args.sample_steps, one.config.diffusion_steps))
    trained = open_trained(Command("latent_quality", own, frozenset()), one.path)
    one.parameters = parameter_count(trained.model)
    nats = per_dimension(one)
    order = None if nats is None else np.array([low + high for low, high in nats])
    one.pictures = report_pictures.of(trained, one.has_latent_diffusion, order)
    for name, found in one.pictures.items():
        if isinstance(found, str):
            print(f"{one.label}: {name} could not be drawn: {found}", file=sys.stderr)


def _flags(parser: Parser) -> None:
    parser.add_argument("experiments", nargs="+", metavar="EXP", help="models/EXP, its name, or a checkpoint")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE",
                        help="the page (default: report.html)")
    parser.add_argument("--sample_steps", type=integer(2), default=20, metavar="N",
                        help="steps to invert and decode an image (default: 20)")
    parser.add_argument("--data_dir", metavar="WORD", help="folder of the data sets (default: the training's)")
    parser.add_argument("--device", metavar="WORD", help="cpu, cuda ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--model_folder", type=Path, default=Path("models"), metavar="WORD",
                        help="root of the checkpoints, for an experiment given by its name (default: ./models)")
    for name in ("log", "result"):
        parser.add_argument(f"--{name}_folder", type=Path, metavar="WORD",
                            help=f"{FIELDS[f'{name}_folder'].metadata['help']} (default: {name}s beside models)")


def _run(argv: list[str]) -> None:
    parser = Parser(prog=PROG, description=__doc__.split("\n\n")[1])
    _flags(parser)
    args = parser.parse_args(argv)
    path = writable_file(args.output)
    roots = sources.Roots(args.model_folder, args.log_folder, args.result_folder)
    experiments = sources.named_apart([sources.read(text, roots) for text in args.experiments])
    for one in experiments:
        draw(one, args)
    text = render(experiments)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text) / 1e6:.1f} MB, opens in any browser")


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
