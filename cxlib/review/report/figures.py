"""The figures: functions from tables and maps to PNG files, byte-identical for the same input."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cxlib import overlay
from cxlib.overlay import COLOURS
from cxlib.review.ledger.claims import HOLDS, IDENTITY, NOT_SHOWN, REFUTED, STATEMENTS, decisive
from cxlib.review.ledger.statistics import second_degree_fit
from cxlib.review.ledger.tables import SURENESS, sureness

PAIR_COLOURS = ("#7f6a93", "#e0a458", "#5b9a68", "#c39bb4")
"""One colour a pair of variants."""

LABELS = overlay.LABELS | {
    "accuracy": "change of accuracy",
    "p_t": "change of $p_t$",
    "y_t": "change of $y_t$",
}


def figure_1_2(changes: pd.DataFrame, path: Path | str) -> None:
    """Figures 1 and 2: grouped bars a network, a row a quantity, a column an epsilon and number of iterations.

    Args:
        changes: columns network, epsilon, n_iterations, contrast, quantity, change.
        path: PNG to write.
    """
    networks, contrasts, quantities = (
        list(dict.fromkeys(changes[axis])) for axis in ("network", "contrast", "quantity")
    )
    settings = sorted(set(zip(changes["epsilon"], changes["n_iterations"])))
    wide = changes.set_index(["epsilon", "n_iterations", "quantity", "contrast", "network"])["change"].sort_index()
    width = max(2.4, 0.11 * len(networks) * (len(contrasts) + 1))
    figure = Figure(figsize=(1.2 + width * len(settings), 2.2 * len(quantities) + 1.2), layout="constrained")
    axes = figure.subplots(len(quantities), len(settings), sharey="row", sharex=True, squeeze=False)
    places = np.arange(len(networks))
    for row, quantity in zip(axes, quantities):
        for axis, (epsilon, n) in zip(row, settings):
            for index, contrast in enumerate(contrasts):
                offset = (index - (len(contrasts) - 1) / 2) * 0.8 / len(contrasts)
                heights = wide[epsilon, n, quantity, contrast].reindex(networks)
                axis.bar(places + offset, heights, 0.8 / len(contrasts), color=COLOURS.get(contrast), label=contrast)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_xticks(places, networks, rotation=35, ha="right", fontsize=8)
        row[0].set_ylabel(LABELS[quantity])
    for axis, (epsilon, n) in zip(axes[0], settings):
        axis.set_title(f"$\\epsilon$ = {epsilon:g}, n = {n}", fontsize=10)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(contrasts), frameon=False)
    overlay.save(figure, path)


def perturbation_vs_published(beside: pd.DataFrame, path: Path | str) -> None:
    """Our changes (filled) and the digitised ones (open): a row an epsilon, a column a quantity, a line a contrast.

    Dots grow with the number of iterations.

    Args:
        beside: columns network, epsilon, n_iterations, contrast, quantity, change, published; empty where one lacks.
        path: PNG to write.
    """
    epsilons, quantities = sorted(set(beside["epsilon"])), ["accuracy", "p_t", "y_t"]
    contrasts = [name for name in COLOURS if name in set(beside["contrast"])]
    # Those that we ran come first.
    absent = beside["change"].isna().groupby(beside["network"]).all()
    networks = list(absent.reset_index().sort_values(["change", "network"])["network"])
    height = len(contrasts) + 1
    sizes = {n: 6 + 12 * rank for rank, n in enumerate(sorted(set(beside["n_iterations"])))}
    figure = Figure(figsize=(10, (0.09 * height * len(networks) + 0.4) * len(epsilons) + 0.6), layout="constrained")
    axes = figure.subplots(len(epsilons), len(quantities), sharex="col", sharey=True, squeeze=False)
    for row, epsilon in zip(axes, epsilons):
        for axis, quantity in zip(row, quantities):
            shown = beside[(beside["epsilon"] == epsilon) & (beside["quantity"] == quantity)]
            for offset, contrast in enumerate(contrasts):
                dots, colour = shown[shown["contrast"] == contrast], COLOURS[contrast]
                y = dots["network"].map(networks.index) * height + offset
                size = dots["n_iterations"].map(sizes)
                axis.scatter(dots["published"], y, size, facecolors="none", edgecolors=colour, linewidths=0.8)
                axis.scatter(dots["change"], y, size, color=colour, linewidths=0, label=contrast)
            axis.axvline(0, color="black", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_yticks(np.arange(len(networks)) * height + (height - 2) / 2, networks, fontsize=8)
        row[0].set_ylabel(f"$\\epsilon$ = {epsilon:g}")
    axes[0, 0].set_ylim(len(networks) * height - 1, -1)
    for axis, quantity in zip(axes[0], quantities):
        axis.set_title(f"{LABELS[quantity]}: ours filled, published open", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(contrasts), frameon=False)
    overlay.save(figure, path)


#: Log-odds beyond which p_t rounds to 1 in float32: 1 - p_t falls below half the distance to the float before 1.
ROUNDS_TO_ONE = 25 * np.log(2)


def saturation(steps: pd.DataFrame, path: Path | str) -> None:
    """Section 4.3: agreement of softmax gradient and closed form by p_t, and how far each moves the logit.

    Args:
        steps: columns network, path, image, step, log_odds, y_t, y_t_after, saturated, agreement.
        path: PNG to write.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, groups = steps.assign(group=sureness(steps)), list(SURENESS)
    literal = steps[steps["path"] == "probability"]
    kinds = ((0, COLOURS["weighted"], "gradient intact"), (1, COLOURS["probability"], "$p_t(1-p_t)$ rounds to 0"))
    for saturated, colour, kind in kinds:
        dots = literal[literal["saturated"] == saturated]
        left.scatter(dots["log_odds"], dots["agreement"], 5, color=colour, alpha=0.4, linewidths=0, label=kind)
    left.axvline(ROUNDS_TO_ONE, color="black", linewidth=0.6, linestyle=":")
    left.annotate("$p_t$ rounds to 1", (ROUNDS_TO_ONE, 0.02), rotation=90, ha="right", va="bottom", fontsize=7)
    left.set_ylim(0, 1.03)
    left.set_xlabel("log-odds of $p_t$ before the step")
    left.set_ylabel("share of pixels with the same sign")
    left.legend(frameon=False, fontsize=8)
    shades = np.linspace(0.35, 1, len(groups))
    for group, shade in zip(groups, shades):
        for name in ("probability", "weighted"):
            rows = steps[(steps["group"] == group) & (steps["path"] == name)]
            if rows.empty:
                continue
            start = rows.groupby(["network", "image"])["y_t"].transform("first")
            gain = (rows["y_t_after"] - start).groupby(rows["step"]).mean()
            label = f"{name}, {group}" if name == "weighted" else None
            right.plot([0, *gain.index], [0, *gain], color=COLOURS[name], alpha=shade, label=label,
                       linestyle="-" if name == "weighted" else "--")  # fmt: skip
    right.set_xlabel("step")
    right.set_ylabel("mean gain of $y_t$")
    right.legend(frameon=False, fontsize=7, title="solid: weighted, dashed: probability", title_fontsize=7)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    overlay.save(figure, path)


def table_1(table: pd.DataFrame, path: Path | str) -> None:
    """Table 1 as dots with their 95 % intervals, and the printed values beside them as open diamonds.

    A row of panels a network and rule of equal area, a column what is kept of which class; the grey line is the image
    as it is.

    Args:
        table: columns as `tables.with_published` gives them.
        path: PNG to write.
    """
    kept = table[(table["kept_features"] != "all") & (table["rule"] != "unequal")]
    if kept.empty:
        return overlay.nothing("No test image is above the threshold.", path)
    blocks = list(kept[["network", "rule"]].drop_duplicates().itertuples(index=False))
    columns = list(kept[["target", "kept_features"]].drop_duplicates().itertuples(index=False))
    lines = list(kept[["explainer", "baseline"]].drop_duplicates().itertuples(index=False))
    contrasts = list(dict.fromkeys(kept["contrast"]))
    offsets = 0.26 * (np.arange(len(contrasts)) - (len(contrasts) - 1) / 2)
    keys = ["network", "rule", "target", "kept_features", "contrast", "explainer", "baseline"]
    wide = kept.set_index(keys)[["relative_probability", "low", "high", "published"]].sort_index()
    figure = Figure(
        figsize=(3 + 2.3 * len(columns), 0.9 + len(blocks) * (0.7 + 0.3 * len(lines))), layout="constrained"
    )
    axes = figure.subplots(len(blocks), len(columns), sharex=True, sharey=True, squeeze=False)
    places = np.arange(len(lines))
    for row, (network, rule) in zip(axes, blocks):
        for axis, (target, features) in zip(row, columns):
            unmasked = table[
                (table["network"] == network) & (table["target"] == target) & (table["contrast"] == "none")
            ]
            axis.axvline(unmasked["relative_probability"].mean(), color="0.75", linewidth=1, label="unmasked")
            for offset, contrast in zip(offsets, contrasts):
                values = wide.loc[network, rule, target, features, contrast].reindex(lines)
                x, y, colour = values["relative_probability"], places + offset, COLOURS[contrast]
                axis.errorbar(
                    x,
                    y,
                    xerr=np.maximum([x - values["low"], values["high"] - x], 0),
                    fmt="o",
                    color=colour,
                    markersize=3.5,
                    elinewidth=1,
                    label=contrast,
                )
                printed = values["published"].to_numpy()
                if not np.isnan(printed).all():
                    axis.plot(
                        printed,
                        y,
                        "D",
                        markerfacecolor="white",
                        markeredgecolor=colour,
                        markersize=4,
                        zorder=1.5,
                        label=f"{contrast}, printed",
                    )
            for line in places[1:]:
                new = lines[line].explainer != lines[line - 1].explainer
                axis.axhline(line - 0.5, color="0.6" if new else "0.9", linewidth=0.6, zorder=0)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
            if axis in axes[0]:
                sense = "higher" if features == "positive" else "lower"
                axis.set_title(f"{_class(target)}, {features} kept\n({sense} is better)", fontsize=9)
        names = [f"{LABELS.get(line.explainer, line.explainer)}, {line.baseline.replace('_', ' ')}" for line in lines]
        row[0].set_yticks(places, names, fontsize=8)
        row[0].set_ylim(len(lines) - 0.5, -0.5)
        row[0].set_ylabel(f"{network}\nrule: {rule.replace('_', ' ')}", fontsize=9)
    figure.supxlabel("relative probability of the class under blur and mask", fontsize=9)
    entries = sorted(zip(*axes[0, 0].get_legend_handles_labels()), key=lambda entry: entry[1])
    figure.legend(*zip(*entries), loc="outside upper center", ncols=len(entries), frameon=False, fontsize=8)
    return overlay.save(figure, path)


def by_ambiguity(table: pd.DataFrame, path: Path | str) -> None:
    """Relative probability under blur and mask from ambiguous images to clear ones, with 95 % intervals.

    A row of panels a network and rule, a column what is kept of which class; grey is the unmasked image.

    Args:
        table: columns as `tables.by_ambiguity` gives them.
        path: PNG to write.
    """
    kept = table[table["kept_features"] != "all"]
    blocks = list(kept[["network", "rule"]].drop_duplicates().itertuples(index=False))
    columns = list(kept[["target", "kept_features"]].drop_duplicates().itertuples(index=False))
    contrasts = list(dict.fromkeys(kept["contrast"]))
    figure = Figure(figsize=(1.2 + 2.4 * len(columns), 0.9 + 2.2 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), len(columns), sharex="row", sharey=True, squeeze=False)
    for row, (network, rule) in zip(axes, blocks):
        own = table[table["network"] == network]
        bins = own.drop_duplicates("p_2").set_index("p_2")["n_images"]
        places = np.arange(len(bins))
        for axis, (target, features) in zip(row, columns):
            here = own[own["target"] == target]
            lines = {"unmasked": here[here["contrast"] == "none"]}
            masked = here[(here["rule"] == rule) & (here["kept_features"] == features)]
            lines |= {contrast: masked[masked["contrast"] == contrast] for contrast in contrasts}
            for index, (name, line) in enumerate(lines.items()):
                values = line.set_index("p_2").reindex(bins.index)
                y = values["relative_probability"]
                bounds = np.maximum([y - values["low"], values["high"] - y], 0)
                x, colour = places + 0.1 * (index - (len(lines) - 1) / 2), COLOURS.get(name, "0.6")
                axis.errorbar(
                    x, y, yerr=bounds, fmt="o-", color=colour, markersize=3.5, linewidth=1, elinewidth=1, label=name
                )
            axis.set_ylim(0, 1)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
            axis.set_xticks(places, [f"{name}\n({n})" for name, n in bins.items()], fontsize=7.5)
            if axis in axes[0]:
                axis.set_title(f"{_class(target)}, {features} kept", fontsize=9)
        row[0].set_ylabel(f"{network}\nrule: {rule.replace('_', ' ')}", fontsize=9)
    figure.supxlabel("$p_2$ (number of images)", fontsize=9)
    figure.supylabel("relative probability", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=8)
    overlay.save(figure, path)


def figure_6(norms: pd.DataFrame, path: Path | str) -> None:
    """Figure 6: norm of the input gradient against the logit, a colour an image, with the second-degree fit.

    Args:
        norms: columns image, rank, logit, norm.
        path: PNG to write.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axis = figure.subplots()
    order = norms["image"].rank(method="dense")
    axis.scatter(norms["logit"], norms["norm"], c=order, cmap="viridis", s=4, alpha=0.5, linewidths=0)
    coefficients, r2 = second_degree_fit(norms["logit"].to_numpy(), norms["norm"].to_numpy())
    x = np.linspace(norms["logit"].min(), norms["logit"].max(), 200)
    axis.plot(x, np.polyval(coefficients, x), color=COLOURS["weighted"], label=f"second degree, $R^2$ = {r2:.2f}")
    axis.set_xlabel("logit $y_s$")
    axis.set_ylabel(r"norm of its input gradient")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    overlay.save(figure, path)


def localisation(table: pd.DataFrame, path: Path | str) -> None:
    """Localisation: a row of panels a network; gain and pointing game of every explainer and contrast.

    Filled dots are the evidence with its interval, hollow ones the same with the targets exchanged; the dashed line is
    the centred Gaussian, the solid one what a uniform map has.

    Args:
        table: as `tables.localisation` gives it.
        path: PNG to write.
    """
    networks = list(dict.fromkeys(table["network"]))
    if not networks:
        return overlay.nothing("No test image has two dominant classes and a part to tell them apart.", path)
    shown = table[(table["target"] == "mean") & table["mass"].isin(["evidence", "exchanged"])]
    explainers, contrasts = (list(dict.fromkeys(shown[axis])) for axis in ("explainer", "contrast"))
    numbers = ["value", "low", "high"]
    rows = shown.set_index(["network", "quantity", "mass", "explainer", "contrast"])[numbers].sort_index()
    offsets = dict(zip(contrasts, np.linspace(-0.3, 0.3, len(contrasts))))
    figure = Figure(figsize=(8.5, 0.5 + 0.55 * (len(explainers) + 2) * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), 2, squeeze=False)
    for network, panels in zip(networks, axes):
        own = table[table["network"] == network]
        area, n_images, truth = own[["area", "n_images", "truth"]].iloc[0]
        parts = "the parts that tell $t_1$ from $t_2$" if truth == "discriminative parts" else truth
        for axis, quantity, uniform, title in (
            (panels[0], "gain", 0, f"mass inside {parts},\nminus share of area"),
            (panels[1], "hit", area, f"pointing game: peak inside\n{parts}"),
        ):
            for (y, explainer), contrast in product(enumerate(explainers), contrasts):
                place, colour = y + offsets[contrast], COLOURS.get(contrast, "black")
                value, low, high = rows.loc[network, quantity, "evidence", explainer, contrast]
                axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
                axis.plot(value, place, "o", color=colour, markersize=5)
                exchanged = rows.loc[network, quantity, "exchanged", explainer, contrast]["value"]
                axis.plot(exchanged, place, "o", color=colour, markersize=4, markerfacecolor="white", zorder=1.5)
            gaussian = own[(own["explainer"] == "gaussian") & (own["quantity"] == quantity)]["value"].item()
            axis.axvline(uniform, color="black", linewidth=0.7)
            axis.axvline(gaussian, color="black", linewidth=0.9, linestyle="--")
            axis.axhspan(len(explainers) - 1.5, len(explainers) - 0.5, color="black", alpha=0.05, linewidth=0)
            axis.set_ylim(len(explainers) - 0.5, -0.5)
            axis.set_yticks(range(len(explainers)), [LABELS.get(name, "mean of all") for name in explainers])
            axis.set_xlabel(title, fontsize=9)
        panels[1].tick_params(labelleft=False)
        panels[0].set_title(f"{network}: {n_images} images above the threshold of $p_2$", fontsize=9, loc="left")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    marks = [Line2D([], [], color=COLOURS.get(c, "black"), label=c, marker="o", linestyle="") for c in contrasts]
    hollow = Line2D([], [], color="grey", label="targets exchanged", marker="o", linestyle="", markerfacecolor="white")
    marks.append(hollow)
    marks.append(Line2D([], [], color="black", linestyle="--", label="centred Gaussian"))
    marks.append(Line2D([], [], color="black", linewidth=0.7, label="uniform map"))
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return overlay.save(figure, path)


def localisation_by_p_2(table: pd.DataFrame, path: Path | str) -> None:
    """How localisation goes as the second class vanishes: a panel a network, a line a contrast, 95 % intervals.

    Args:
        table: as `tables.localisation_by_p_2` gives it.
        path: PNG to write.
    """
    shown = table[(table["quantity"] == "gain") & (table["explainer"] == "mean")]
    networks, contrasts = (list(dict.fromkeys(shown[axis])) for axis in ("network", "contrast"))
    if not networks:
        return overlay.nothing("No test image shows a part that tells its two most probable classes apart.", path)
    figure = Figure(figsize=(1.5 + 4 * len(networks), 3.4), layout="constrained")
    axes = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axis, network in zip(axes, networks):
        for contrast, shift in zip(contrasts, np.linspace(-0.1, 0.1, len(contrasts))):
            line = shown[(shown["network"] == network) & (shown["contrast"] == contrast)]
            places, colour = np.arange(len(line)) + shift, COLOURS.get(contrast, "black")
            axis.vlines(places, line["low"], line["high"], color=colour, linewidth=1.5)
            axis.plot(places, line["value"], "o-", color=colour, markersize=4, linewidth=0.8, label=contrast)
        ticks = [p_2.replace("–", "–\n") + f"\n({n})" for p_2, n in zip(line["p_2"], line["n_images"])]
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set_xticks(range(len(ticks)), ticks, fontsize=8)
        axis.set_xlim(-0.5, len(ticks) - 0.5)
        axis.set_xlabel("$p_2$ (images)", fontsize=9)
        axis.set_title(network, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mass inside minus area,\nmean of explainers", fontsize=9)
    axes[0].legend(frameon=False, fontsize=8)
    return overlay.save(figure, path)


def transformers(table: pd.DataFrame, path: Path | str) -> None:
    """Figure 5 in numbers: a row of panels a network and explainer, measures by p_2, or by block, 95 % intervals.

    Args:
        table: as `tables.transformers`, or `tables.transformer_blocks`, gives it.
        path: PNG to write.
    """
    panels = {
        "alike": "correlation of two variants",
        "between": "correlation of $t_1$ and $t_2$",
        "coherence": "Moran’s I beyond chance",
        "gain": "mass inside the telling part,\nminus its share of area",
        "positive_kept": "relative probability of $t_2$,\npositive features kept",
    }
    ticked, label = ("p_2", "$p_2$") if "p_2" in table else ("block", "block")
    table = table[table["rule"].isin(["none", "equal_kept"]) & (table[ticked] != "all")]
    table = table[(table["quantity"] != "positive_kept") | (table["target"] == "t2")]
    panels = {quantity: title for quantity, title in panels.items() if quantity in set(table["quantity"])}
    groups = list(dict.fromkeys(zip(table["network"], table["explainer"])))
    figure = Figure(figsize=(0.2 + 2.7 * len(panels), 1.95 * len(groups) + 0.6), layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for (network, explainer), row in zip(groups, axes):
        own = table[(table["network"] == network) & (table["explainer"] == explainer)]
        ticks = list(dict.fromkeys(own[ticked]))
        for axis, (quantity, title) in zip(row, panels.items()):
            shown = own[own["quantity"] == quantity]
            variants = list(dict.fromkeys(shown["variant"]))
            for variant, shift in zip(variants, np.linspace(-0.12, 0.12, len(variants))):
                line = shown[shown["variant"] == variant]
                places = line[ticked].map(ticks.index) + shift
                colour = COLOURS.get(variant) or PAIR_COLOURS[variants.index(variant)]
                axis.vlines(places, line["low"], line["high"], color=colour, linewidth=1.3)
                named = variant.replace("without_relu", LABELS["without_relu"])
                axis.plot(places, line["value"], "o-", color=colour, markersize=3.5, linewidth=0.8, label=named)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_xticks(range(len(ticks)), ticks, fontsize=7)
            axis.set_xlabel(label, fontsize=8)
            axis.set_ylabel(title, fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", labelsize=7)
        row[0].set_title(f"{network}: {LABELS[explainer]}", fontsize=10, loc="left")
    named = {name: mark for axis in axes[0] for mark, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(named.values(), named, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    overlay.save(figure, path)


def contact_sheet(families: Mapping[str, tuple[Sequence[str], Mapping[str, np.ndarray]]], path: Path | str) -> None:
    """Pictures of species: a row a family, a panel a species, and what tells the siblings apart.

    Args:
        families: for each family the parts that tell its members apart, and a picture (H, W, 3) for each of them.
        path: PNG to write.
    """
    widest = max(
        sum(picture.shape[1] / picture.shape[0] for picture in members.values()) for _, members in families.values()
    )
    figure = Figure(figsize=(1.5 * widest, 2.0 * len(families)))
    rows = figure.subfigures(len(families), 1, squeeze=False)[:, 0]
    for row, (family, (parts, members)) in zip(rows, families.items()):
        title = f"{family}: told apart by {', '.join(parts)}"
        row.suptitle(title, x=0.01, y=0.97, ha="left", fontsize=11, weight="bold")
        axes = row.subplots(1, len(members), squeeze=False)[0]
        row.subplots_adjust(left=0.01, right=0.99, top=0.82, bottom=0.01, wspace=0.03)
        for axis, (name, picture) in zip(axes, members.items()):
            axis.imshow(picture)
            axis.set_title(name, fontsize=10, pad=3)
            axis.set_axis_off()
    overlay.save(figure, path)


def _class(target: str) -> str:
    """`t1` as it is set in a formula."""
    return f"${target[0]}_{target[1:]}$"


def doses(table: pd.DataFrame, path: Path | str) -> None:
    """What each contrast changes beyond `original`, by epsilon: a row a network, a column a quantity.

    The band is the 95 % interval, of the largest number of iterations; a dotted line marks the epsilon of the verdicts.

    Args:
        table: what `tables.doses` returns.
        path: PNG to write.
    """
    table = table[table["n_iterations"] == table["n_iterations"].max()]
    networks, quantities = list(dict.fromkeys(table["network"])), list(dict.fromkeys(table["quantity"]))
    size = (3.6 * len(quantities), 2.6 * len(networks) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(networks), len(quantities), sharex=True, squeeze=False)
    for (i, network), (j, quantity) in product(enumerate(networks), enumerate(quantities)):
        axis, rows = axes[i, j], table[(table["network"] == network) & (table["quantity"] == quantity)]
        for contrast, line in rows.groupby("contrast", sort=False):
            colour = COLOURS.get(contrast)
            axis.plot(line["epsilon"], line["margin"], "o-", color=colour, label=contrast, markersize=3)
            axis.fill_between(line["epsilon"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
        for epsilon in rows.loc[rows["chosen"], "epsilon"].unique():
            axis.axvline(epsilon, color="black", linewidth=0.8, linestyle=":")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xscale("log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"{network}: {LABELS[quantity]}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("$\\epsilon$")
    axes[0, 0].set_ylabel("beyond original")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    overlay.save(figure, path)


VERDICTS = {HOLDS: "#2f7d4f", REFUTED: "#b3392f", NOT_SHOWN: "#8a8a8a", IDENTITY: "#4a78b0"}
"""One colour a verdict."""


def ledger(table: pd.DataFrame, path: Path | str) -> None:
    """The ledger as a forest plot: a line a margin under its sentence, the interval to scale, the numbers beside it.

    A margin that is on all networks together stands there only. Every line has a scale of its own, for margins are
    probabilities, logits and correlations: zero is common, and of an equivalence the shaded bound. Published values are
    diamonds.

    Args:
        table: what `claims.judge` returns.
        path: PNG to write.
    """
    lines: list[Any] = []
    for statement, rows in decisive(table).groupby("statement", sort=False):
        lines += [statement, *rows.itertuples()]
    figure = Figure(figsize=(13, 0.215 * len(lines) + 1.3), layout="constrained")
    axis = figure.subplots()
    for y, row in enumerate(lines):
        if isinstance(row, str):
            section, sentence = STATEMENTS[row]
            axis.text(-5.2, y, f"{row}  ({section}): {sentence}", fontsize=9, fontweight="bold", va="center")
            continue
        colour = VERDICTS[row.verdict]
        shown = [row.mean, row.low, row.high, row.bound, *([] if np.isnan(row.published) else [row.published])]
        scale = max(np.abs(shown)) or 1.0
        if row.bound:
            axis.barh(y, 2 * row.bound / scale, 0.8, -row.bound / scale, color="#e4e4e4", zorder=0)
        axis.plot(np.array([row.low, row.high]) / scale, [y, y], color=colour, linewidth=1.6)
        axis.plot(row.mean / scale, y, "o", color=colour, markersize=4.5)
        if not np.isnan(row.published):
            axis.plot(row.published / scale, y, "D", color="none", markeredgecolor="black", markersize=4.5)
        axis.text(-5.1, y, row.margin.replace("_", " "), fontsize=8, va="center")
        axis.text(-1.15, y, row.network, fontsize=8, va="center", ha="right")
        numbers = f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}]  n = {row.n_images}"
        axis.text(1.15, y, numbers, fontsize=8, va="center", family="monospace")
        note = f" ({row.note})" if isinstance(row.note, str) and row.note else ""  # an empty one is NaN in a CSV
        axis.text(3.35, y, row.verdict + note, fontsize=8, va="center", color=colour)
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set(xlim=(-5.3, 6.2), ylim=(len(lines) - 0.4, -0.8), yticks=[], xticks=[])
    axis.spines[:].set_visible(False)
    marks = [Line2D([], [], color=colour, marker="o", label=verdict) for verdict, colour in VERDICTS.items()]
    marks.append(Line2D([], [], color="none", marker="D", markeredgecolor="black", label="published"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False)
    overlay.save(figure, path)


def intervention(table: pd.DataFrame, path: Path | str) -> None:
    """Truth by intervention: a row an explainer, the best on top, its contrasts beside each other with their intervals.

    Left how well masses rank the effects across images, right how much of an effect's share they find; the grey bar is
    what a perfect map of the explainer's resolution reaches.

    Args:
        table: as `tables.intervention` gives it.
        path: PNG to write.
    """
    networks = list(dict.fromkeys(table["network"]))
    if not networks:
        return overlay.nothing("No test image was repainted.", path)
    n_rows = table["explainer"].nunique()
    figure = Figure(figsize=(8.5, 0.9 + 0.42 * n_rows * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), 2, squeeze=False, sharey="row")
    contrasts = [contrast for contrast in dict.fromkeys(table["contrast"]) if contrast != "perfect"]
    offsets = dict(zip(contrasts, np.linspace(-0.25, 0.25, len(contrasts))))
    for network, panels in zip(networks, axes):
        rows = table[table["network"] == network].set_index(["quantity", "contrast", "explainer"]).sort_index()
        order = rows.loc["rank"].loc[contrasts].groupby("explainer")["value"].max().sort_values().index.tolist()
        for axis, quantity, title in (
            (panels[0], "rank", "rank correlation of mass and effect,\nacross images within a part"),
            (panels[1], "found", "share of the mass where the effect is,\nof what a perfect map has there"),
        ):
            for (y, explainer), contrast in product(enumerate(order), contrasts):
                place, colour = y - offsets[contrast], COLOURS.get(contrast, "black")
                value, low, high = rows.loc[(quantity, contrast, explainer), ["value", "low", "high"]]
                axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
                axis.plot(value, place, "o", color=colour, markersize=5)
            for y, explainer in enumerate(order):
                best = rows.loc[(quantity, "perfect", explainer), "value"]
                axis.plot([best, best], [y - 0.35, y + 0.35], color="grey", linewidth=2)
            axis.axvline(0, color="black", linewidth=0.7)
            axis.set_yticks(range(n_rows), [LABELS.get(name, name) for name in order])
            axis.set_xlabel(title, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
        n_images = rows["n_images"].iloc[0]
        panels[0].set_title(f"{network}: {n_images} birds, every part repainted", fontsize=9, loc="left")
    marks = [Line2D([], [], color=COLOURS.get(c, "black"), label=c, marker="o", linestyle="") for c in contrasts]
    marks.append(Line2D([], [], color="grey", linewidth=2, label="perfect map"))
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return overlay.save(figure, path)


#: The leaderboard's panels, the first of which sorts its rows, and which way is better.
JUDGES = {
    "repainting": "rank correlation with\nwhat repainting does →",
    "insertion_deletion": "$y_{t_1} - y_{t_2}$: insertion\nminus deletion →",
    "localisation": "mass where the classes\ndiffer, beyond area →",
    "head": "← order left when\nthe classifier is new",
    "all": "← order left when\nall layers are new",
    "passes": "← forward passes\na map",
}


def leaderboard(table: pd.DataFrame, path: Path | str) -> None:
    """Which explainer, and does the contrast help it: a row an explainer, the best on top, a panel a judge.

    Rows stand in the order of the first judge that a network has, by their best contrast; arrows point to the better
    side.

    Args:
        table: as `leaderboard.leaderboard` gives it.
        path: PNG to write.
    """
    networks, contrasts = (list(dict.fromkeys(table[axis])) for axis in ("network", "contrast"))
    n_rows = table.groupby("network")["explainer"].nunique().max()
    figure = Figure(figsize=(13, 0.9 + (0.6 + 0.3 * n_rows) * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), len(JUDGES), squeeze=False, sharey="row")
    offsets = dict(zip(contrasts, np.linspace(0.22, -0.22, len(contrasts))))
    for network, panels in zip(networks, axes):
        own = table[table["network"] == network]
        has = [measure for measure in JUDGES if measure in set(own["measure"])]
        best = own[own["measure"] == has[0]].groupby("explainer")["value"].max().reindex(own["explainer"].unique())
        order = best.sort_values(na_position="first").index.tolist()
        for axis, (measure, title) in zip(panels, JUDGES.items()):
            for row in own[own["measure"] == measure].itertuples():
                place, colour = order.index(row.explainer) + offsets[row.contrast], COLOURS.get(row.contrast, "black")
                axis.plot([row.low, row.high], [place, place], color=colour, linewidth=1.5)
                axis.plot(row.value, place, "o", color=colour, markersize=4.5)
            if measure not in has:
                axis.text(0.5, 0.5, "not painted", ha="center", va="center", color="grey", transform=axis.transAxes)
            axis.axvline(0, color="black", linewidth=0.7)
            axis.set_yticks(range(len(order)), [LABELS.get(name, name) for name in order])
            for line in range(len(order) - 1):
                axis.axhline(line + 0.5, color="0.9", linewidth=0.6, zorder=0)
            axis.set_xlabel(title, fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="x", labelsize=8)
            if measure in has:
                n_images = own[own["measure"] == measure]["n_images"].iloc[0]
                axis.set_title("counted" if measure == "passes" else f"{n_images} images", fontsize=8, loc="right")
        panels[0].set_title(network, fontsize=9, loc="left")
    marks = [Line2D([], [], color=COLOURS.get(c, "black"), label=c, marker="o", linestyle="") for c in contrasts]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=9)
    overlay.save(figure, path)


#: The figures that are drawn from one table, or from maps.
FIGURES: dict[str, Callable[[Any, Path | str], None]] = {
    "figure_1_2": figure_1_2,
    "perturbation_vs_published": perturbation_vs_published,
    "doses": doses,
    "saturation": saturation,
    "figure_6": figure_6,
    "table1": table_1,
    "by_ambiguity": by_ambiguity,
    "localisation": localisation,
    "localisation_by_p_2": localisation_by_p_2,
    "intervention": intervention,
    "leaderboard": leaderboard,
    "figure_3": overlay.over_images,
    "figure_4": overlay.over_images,
    "figure_5": overlay.over_images,
    "vit": transformers,
    "vit_blocks": transformers,
    "ledger": ledger,
}
