"""From the values of single images to tables and headlines: one command for each of the review's results.

Each reads FOLDER/NETWORK.npz of every network asked for; a missing one is an error, any other is removed.
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
from _command import COUNT, SHARE, Stage, gathered, option, several

from cxlib import runtime
from cxlib.review.ledger import claims as judged
from cxlib.review.ledger import leaderboard as board
from cxlib.review.ledger import statements, tables

#: What the ledger is made of, by the kind of network that it is of; saturation is of the perturbed ones.
FOLDERS = ("perturbed", "saturated", "masked", "controlled", "localised", "intervened", "related", "transformers")
KIND_OF = {"saturated": "perturbed"}


@click.group()
def main():
    """Gather what the stages of the networks left behind."""


def command(*options):
    """A command of these options, and of --table and --metrics, which all have."""

    def decorated(function):
        for add in (option("--metrics"), option("--table"), *reversed(options)):
            function = add(function)
        return main.command(cls=Stage)(function)

    return decorated


def write(made, metrics, headlines):
    """Write tables by path, after the headlines, whose NaN is an error: all that is made is written, or nothing."""
    runtime.write_metrics(metrics, headlines)
    for path, content in made.items():
        runtime.write_csv(path, content)


networks_, folder_, seed_ = several("--networks"), option("--folder"), option("--seed", COUNT)


@command(networks_, folder_, option("--threshold", SHARE), option("--curves"))
def networks(networks, folder, threshold, curves, table, metrics):
    """What training reached, and how many test images are ambiguous enough to explain."""
    reports = gathered(folder, networks)
    tested = tables.tested(reports, threshold)
    known = tested.dropna(subset="test_accuracy")
    headlines = {"accuracy": dict(zip(known["network"], known["test_accuracy"]))}
    write({table: tested, curves: tables.training(reports)}, metrics, headlines)


@command(networks_, folder_, seed_, option("--published"), option("--zeros"), option("--doses"), option("--beside"))
def perturbation(networks, folder, seed, published, zeros, doses, beside, table, metrics):
    """The table behind Figures 1 and 2, beside the published one; headlines are means over settings and networks."""
    cells = gathered(folder, networks)
    changes = tables.perturbation(cells)
    with_published = tables.perturbation_vs_published(changes, pd.read_csv(published))
    made = {table: changes, zeros: tables.zero_gradients(cells), beside: with_published}
    made |= {doses: tables.doses(cells, np.random.default_rng(seed))}
    shown = changes[changes["contrast"].isin(["original", "weighted"])]
    close = {quantity: numbers["correlation"] for quantity, numbers in tables.closeness(with_published).items()}
    headlines = tables.nested(shown.groupby(["quantity", "contrast"])["change"].mean())
    write(made, metrics, headlines | ({"correlation_with_published": close} if close else {}))


@command(networks_, folder_, option("--steps"))
def saturation(networks, folder, steps, table, metrics):
    """Section 4.3: every image at every step, and by sureness; headlines are of the surest images."""
    followed = tables.saturation(gathered(folder, networks))
    by_sureness = tables.dominance(followed)
    surest = by_sureness.iloc[-1]
    headlines = {name: surest[name] for name in ("y_t_gain_probability", "y_t_gain_weighted")}
    write({steps: followed, table: by_sureness}, metrics, headlines)


@command(
    networks_, folder_, seed_, option("--published"), option("--under-published"), option("--under-table"),
    option("--by-ambiguity"),
)  # fmt: skip
def masking(networks, folder, seed, published, under_published, under_table, by_ambiguity, table, metrics):
    """Table 1, the one below its threshold, and by p_2; headlines are means over explainers and baselines.

    They are what weighted gains over original, in relative probability.
    """
    cells = gathered(folder, networks)
    above, below = (tables.masking(cells, side, np.random.default_rng(seed)) for side in (True, False))
    made = {
        table: tables.with_published(above, pd.read_csv(published)),
        under_table: tables.with_published(below, pd.read_csv(under_published)),
        by_ambiguity: tables.by_ambiguity(cells, np.random.default_rng(seed)),
    }
    kept = above[(above["rule"] == "equal_kept") & (above["contrast"] == "weighted")]
    groups = kept["target"] + "_" + kept["kept_features"] + "_kept"
    write(made, metrics, kept["margin"].groupby(groups).mean().to_dict())


@command(networks_, folder_, seed_, option("--p-2-table"))
def localisation(networks, folder, seed, p_2_table, table, metrics):
    """Mass in the telling parts, and by p_2; headlines are original's and weighted's shares above the area's."""
    cells = gathered(folder, networks)
    localised = tables.localisation(cells, np.random.default_rng(seed))
    by_p_2 = tables.localisation_by_p_2(cells, np.random.default_rng(seed))
    gains = localised[(localised["quantity"] == "gain") & localised["contrast"].isin(["original", "weighted"])]
    means = gains[(gains["target"] == "mean") & (gains["explainer"] == "mean") & (gains["mass"] == "evidence")]
    write({table: localised, p_2_table: by_p_2}, metrics, {"gain": means.groupby("contrast")["value"].mean().to_dict()})


def repainted(folder, networks):
    """The cells of the networks whose birds were repainted; only painted ones can be: `none`."""
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder}: run the stage that writes it")
    return gathered(folder, networks) if "none" not in networks else {}


@command(networks_, folder_, seed_, option("--effects"))
def intervention(networks, folder, seed, effects, table, metrics):
    """What repainting does, and how maps agree with it; headlines are of the whole dose, and weighted's gain."""
    cells = repainted(folder, networks)
    done = tables.repainting(cells, np.random.default_rng(seed))
    agreed = tables.intervention(cells, np.random.default_rng(seed))
    whole = done[(done["repainted"] == "as_sibling") & (done["dose"] == 1)]
    headlines = whole[whole["quantity"].isin(["effect", "flips"])].groupby("quantity")["value"].mean().to_dict()
    ranks = agreed[(agreed["quantity"] == "rank") & (agreed["contrast"] == "weighted")]
    headlines |= {"rank_gain": ranks["margin"].mean()} if len(ranks) else {}
    write({table: agreed, effects: done}, metrics, headlines)


@command(networks_, folder_, seed_, option("--repainted"))
def leaderboard(networks, folder, seed, repainted, table, metrics):
    """Explainers by contrasts under every judge; the headline is what weighted adds, mean over explainers."""
    cells = gathered(folder, networks)
    made = board.leaderboard(cells, pd.read_csv(repainted), np.random.default_rng(seed))
    gained = made[(made["contrast"] == "weighted") & (made["measure"] == "insertion_deletion")]
    write({table: made}, metrics, {"gain": gained.groupby("measure")["margin"].mean().to_dict()})


@command(networks_, folder_, seed_, option("--blocks-table"))
def transformers(networks, folder, seed, blocks_table, table, metrics):
    """Variants of Vision Transformers' maps by p_2 and by block; headlines are of ambiguous images."""
    cells = gathered(folder, networks)
    compared = tables.transformers(cells, np.random.default_rng(seed))
    blocks = tables.transformer_blocks(cells, np.random.default_rng(seed))
    shown = compared[compared["p_2"].str.startswith(">") & (compared["quantity"] == "between")]
    shown = shown[shown["variant"].isin(["without_relu", "contrastive"])]
    names = "t1_t2_correlation_" + shown["variant"]
    headlines = tables.nested(shown.groupby(["explainer", names])["value"].mean())
    write({table: compared, blocks_table: blocks}, metrics, headlines)


@command(
    *(several(f"--{kind}") for kind in FOLDERS if kind not in KIND_OF), option("--norms-of"), seed_,
    option("--with-batch-norm"), option("--without-batch-norm"),
    *(option(f"--{kind}-folder") for kind in FOLDERS), option("--norms"),
    option("--published-perturbation"), option("--published-table"),
)  # fmt: skip
def claims(norms, norms_of, seed, published_perturbation, published_table, table, metrics, **options):
    """The ledger: every sentence of the review, judged on every network, and the verdicts.

    The masked network --with-batch-norm is compared with the one --without-batch-norm; `none`: nothing is.
    """
    asked = {kind: options[KIND_OF.get(kind, kind)] for kind in FOLDERS}
    read, printed = {"intervened": repainted}, pd.read_csv(published_table)
    cells = {kind: read.get(kind, gathered)(options[f"{kind}_folder"], names) for kind, names in asked.items()}
    margins = [
        *statements.of_perturbation(cells["perturbed"], pd.read_csv(published_perturbation)),
        *statements.of_masking(cells["masked"], printed),
        *statements.of_controls(cells["controlled"], cells["masked"], printed),
        *statements.of_localisation(cells["localised"]),
        *statements.of_interventions(cells["intervened"], printed),
        *statements.of_relations(cells["related"]),
        *statements.of_transformers(cells["transformers"], cells["masked"]),
        *statements.of_gradients(pd.read_csv(norms), norms_of, cells["saturated"]),
    ]
    if "none" not in (pair := (options["with_batch_norm"], options["without_batch_norm"])):
        margins += statements.of_batch_norm(*(cells["masked"][name] for name in pair), " and ".join(pair))
    ledger = judged.judge(margins, np.random.default_rng(seed))
    write({table: ledger}, metrics, judged.headlines(ledger))


if __name__ == "__main__":
    main()
